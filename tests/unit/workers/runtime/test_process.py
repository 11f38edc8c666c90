"""The process: reporting that it is ready, retrying, taking an address or a parent's socket."""

import os
import socket
import threading
from contextlib import closing

import pytest

from ops.embedded.readiness import listen_for_readiness
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError
from workers.runtime.process import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    announce_progress,
    announce_ready,
    bind,
    inherited,
    keep_running,
)


def test_an_address_that_is_taken_is_refused_with_how_to_fix_it() -> None:
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
    with listen_for_readiness() as told:
        monkeypatch.setenv("NOTIFY_SOCKET", told.environment["NOTIFY_SOCKET"])
        assert not told.is_ready()
        for _ in range(1000):
            announce_ready()
        assert told.is_ready()
        assert told.is_ready()
    announce_ready()


def test_a_status_alone_is_not_readiness() -> None:
    with (
        listen_for_readiness() as told,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as process,
    ):
        process.sendto(b"STATUS=loading READY=1", told.environment["NOTIFY_SOCKET"])
        assert not told.is_ready()
        process.sendto(b"STATUS=there\nREADY=1", told.environment["NOTIFY_SOCKET"])
        assert told.is_ready()


def test_who_started_a_process_hears_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_for_readiness() as told:
        monkeypatch.setenv("NOTIFY_SOCKET", told.environment["NOTIFY_SOCKET"])
        assert told.take_news() == ""
        announce_progress("loading generation 3")
        announce_progress("loading generation 3: 12 MiB read")
        assert not told.is_ready()
        assert told.take_news() == "loading generation 3: 12 MiB read"
        assert told.take_news() == ""
        announce_ready()
        assert told.is_ready()


class CountedStop(threading.Event):
    """A stop event that does not sleep, notes how long it was asked to, and stops at last."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.pauses_s: list[float] = []
        self._waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses_s.append(timeout)
        if len(self.pauses_s) == self._waits:
            self.set()
        return self.is_set()


def test_pauses_between_failing_sessions_double_up_to_the_longest() -> None:
    stop = CountedStop(7)

    def session(_: threading.Event) -> None:
        raise RetryLaterError("the database does not answer")

    keep_running(session, stop, "test")
    doubled = [FIRST_PAUSE_S * 2**turn for turn in range(5)]
    assert stop.pauses_s == [*doubled, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_a_session_that_ended_well_makes_the_next_pause_short_again() -> None:
    stop = CountedStop(3)
    failing = iter([True, True, False, True])

    def session(_: threading.Event) -> None:
        if next(failing):
            raise RetryLaterError("the database does not answer")

    keep_running(session, stop, "test")
    assert stop.pauses_s == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, FIRST_PAUSE_S]


def test_an_error_that_is_not_transient_ends_the_worker() -> None:
    def session(_: threading.Event) -> None:
        raise RefuseToStartError("the schema is newer than this program")

    with pytest.raises(RefuseToStartError):
        keep_running(session, CountedStop(1), "test")
