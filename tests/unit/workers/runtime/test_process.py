"""Running: telling that one is ready, taking an address, and taking over a socket from a parent process."""

import os
import socket
from contextlib import closing

import pytest

from ops.embedded.supervisor import notice
from schemas.errors import RefuseToStartError, UsageError
from workers.runtime.process import announce_ready, bind, inherited


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


def test_who_started_a_process_hears_once_that_it_is_ready_and_need_not_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    announce_ready()
    with notice() as told:
        monkeypatch.setenv("NOTIFY_SOCKET", told.environment["NOTIFY_SOCKET"])
        assert not told.heard()
        for _ in range(1000):
            announce_ready()
        assert told.heard()
        assert told.heard()
    announce_ready()


def test_a_status_alone_is_not_readiness() -> None:
    with notice() as told, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as process:
        process.sendto(b"STATUS=loading READY=1", told.environment["NOTIFY_SOCKET"])
        assert not told.heard()
        process.sendto(b"STATUS=there\nREADY=1", told.environment["NOTIFY_SOCKET"])
        assert told.heard()
