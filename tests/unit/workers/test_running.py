"""Listening: taking an address, and taking over a socket from a parent process."""

import os
import socket
from contextlib import closing

import pytest

from schemas.errors import RefuseToStartError, UsageError
from workers.running import bind, inherited


def test_an_address_that_is_taken_is_refused_with_the_cure() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(RefuseToStartError, match="SIGMA_HTTP_PORT"):
        bind("127.0.0.1", first.getsockname()[1])


def test_a_socket_that_a_parent_listens_on_is_taken_over() -> None:
    with bind("127.0.0.1", 0) as parent, inherited(os.dup(parent.fileno())) as child:
        address = child.getsockname()
        assert address == parent.getsockname()
        parent.close()
        with socket.create_connection(address, timeout=5), closing(child.accept()[0]) as taken:
            assert taken.getsockname() == address


def test_what_does_not_listen_is_refused() -> None:
    with socket.socket() as silent, pytest.raises(UsageError, match="not listening"):
        inherited(silent.fileno())
    reader, writer = os.pipe()
    with pytest.raises(UsageError, match="no socket"):
        inherited(reader)
    os.close(reader)
    os.close(writer)
