"""Running: how every worker process tells that it is ready, stops on a signal, outlives a service that is away, and takes its port."""

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg
import structlog

from schemas.errors import RefuseToStartError, RetryLaterError, UsageError

TRANSIENT_ERRORS = (RetryLaterError, psycopg.OperationalError)
"""What a service that went away raises; the work is tried again on a new connection."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

_settled = threading.Event()
"""Remembered here: asking the collector counts all objects, which takes 60 milliseconds."""

log = structlog.get_logger()


def announce_ready() -> None:
    """Tell whoever started this process that it can take work now, by the protocol of systemd's `sd_notify`, if that was asked for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        # A supervisor that has gone, or has heard enough, is no reason to stop.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
            notice.setblocking(False)
            notice.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set: loops end after the batch in hand."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def keep_running(
    session: Callable[[threading.Event], None], stop: threading.Event, name: str
) -> None:
    """Run a session until `stop` is set; a service that went away ends it, and a new one begins after a pause that grows to 5 seconds.

    Nothing is lost by it: a session commits its rows and its offsets together or not at all.
    """
    pause = _FIRST_PAUSE_S
    while not stop.is_set():
        try:
            session(stop)
            pause = _FIRST_PAUSE_S
        except TRANSIENT_ERRORS as error:
            log.warning(
                "session ended, trying again", worker=name, reason=str(error), pause_s=pause
            )
            stop.wait(pause)
            pause = min(_LONGEST_PAUSE_S, pause * 2)


def settle_memory() -> None:
    """Call it when a model was loaded. From the first one on, the garbage collector no longer looks through the half a million objects of
    the libraries, which would stop the process for a quarter of a second whenever a further model is loaded. Those are small: they are
    looked at, and freed when they are forgotten."""
    if not _settled.is_set():
        _settled.set()
        gc.collect()
        gc.freeze()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; `RefuseToStartError` when the address is taken or not this machine's."""
    try:
        return socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise RefuseToStartError(
            f"cannot listen on {host}:{port} ({error.strerror}); free it or set SIGMA_HTTP_HOST and SIGMA_HTTP_PORT"
        ) from error


def inherited(number: int) -> socket.socket:
    """The listening socket that the parent process left open under this number; `UsageError` when there is none."""
    try:
        found = socket.socket(fileno=number)
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return found
        found.detach()
        problem = "is not listening"
    except OSError as error:
        problem = f"is no socket ({error.strerror})"
    raise UsageError(
        f"file descriptor {number} {problem}; give one that a parent process listens on, or leave --listener out"
    )
