"""The process: how a worker reports that it is ready, stops on a signal, retries, takes its port.

Retrying is what lets every worker survive an unavailable service (`keep_running`).
"""

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
import structlog

from schemas.errors import RefuseToStartError, RetryLaterError, UsageError

# What an unavailable service raises; the work is tried again on a new connection.
TRANSIENT_ERRORS = (
    RetryLaterError,
    psycopg.OperationalError,
    psycopg.errors.IdleInTransactionSessionTimeout,
)

# Seconds before the first retry: most failures are a dropped connection, which is back at once.
FIRST_PAUSE_S = 0.2

# Most seconds between retries, so that work goes on soon after a long outage ends.
LONGEST_PAUSE_S = 5.0

# Seconds that a process may take to stop after the one that started it has ended.
_ORPHAN_GRACE_S = 10.0

# Connections that may wait to be accepted.
BACKLOG = 1024

# Whether `settle_memory` ran. To ask the collector instead counts all objects: 60 ms.
_settled = threading.Event()

log = structlog.get_logger()


def announce_ready() -> None:
    """Tell the supervisor that this process can take work now, if it asked to be told."""
    _notify(b"READY=1")


def announce_progress(text: str) -> None:
    """Tell the supervisor, if it asked to be told, how far the start of this process is."""
    _notify(b"STATUS=" + text.replace("\n", " ").encode())


def _notify(message: bytes) -> None:
    """The protocol of systemd's `sd_notify`: a datagram to the socket `NOTIFY_SOCKET`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A leading @ stands for the zero byte of Linux's abstract socket names.
    target = "\0" + address[1:] if address.startswith("@") else address
    # A supervisor that ended, or whose queue is full, is no reason to stop working.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.setblocking(False)
        notifier.sendto(message, target)


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set: loops finish their current batch and end."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def stop_with_parent() -> None:
    """End as by SIGTERM when standard input closes: the process that started this one has ended.

    However it ended, the kernel closes its end of the pipe. A process that does not stop within
    `_ORPHAN_GRACE_S` ends at once: nobody is left who would kill it.
    """

    def wait() -> None:
        # Not through `sys.stdin`: a thread that waits in its lock aborts the interpreter at exit.
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def keep_running(
    session: Callable[[threading.Event], None], stop: threading.Event, name: str
) -> None:
    """Run a session again and again until `stop` is set.

    A transient error ends a session; the next one begins after a pause that doubles up to
    `LONGEST_PAUSE_S`. Nothing is lost: a session commits its rows and its offsets together or not
    at all. Other errors are raised.
    """
    pause_s = FIRST_PAUSE_S
    while not stop.is_set():
        try:
            session(stop)
            pause_s = FIRST_PAUSE_S
        except TRANSIENT_ERRORS as error:
            log.warning("session ended, retrying", worker=name, reason=str(error), pause_s=pause_s)
            stop.wait(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


def settle_memory() -> None:
    """Exclude everything that exists now from garbage collection. Call it after a model was loaded.

    Otherwise each collection visits the half a million objects of the libraries, and stops the
    process for a quarter of a second whenever a further model is loaded. Only the first call acts:
    the objects of later models are few, and have to be freed when their generation is unloaded.
    """
    if not _settled.is_set():
        _settled.set()
        gc.collect()
        gc.freeze()


def bind(
    host: str, port: int, set_by: str = "SIGMA_HTTP_HOST and SIGMA_HTTP_PORT"
) -> socket.socket:
    """Listen on an address; `RefuseToStartError` when it is taken or belongs to another machine.

    `set_by` names the settings of the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise RefuseToStartError(
            f"cannot listen on {host}:{port} ({error.strerror}); free it or set {set_by}"
        ) from error


def inherited(number: int) -> socket.socket:
    """Take over the listening socket that the parent process left open as file descriptor `number`.

    `UsageError` when the descriptor is no socket or does not listen.
    """
    try:
        listener = socket.socket(fileno=number)
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return listener
        # The descriptor belongs to the parent's bookkeeping: leave it open.
        listener.detach()
        problem = "is not listening"
    except OSError as error:
        problem = f"is no socket ({error.strerror})"
    raise UsageError(
        f"file descriptor {number} {problem}; "
        "give one that a parent process listens on, or leave --listener out"
    )
