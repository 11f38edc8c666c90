"""The keeper: the process that runs the embedded PostgreSQL of one home while anybody uses it.

It is PostgreSQL's parent. When PostgreSQL dies it starts it again; when the last process that uses
it is gone, however it ended, it stops it. Users hold a shared lock on a file, which the kernel
frees with its holder, so nobody has to be asked and no list of users can be wrong.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ops.embedded.file_lock import hold, hold_when_unused

# Longest wait for PostgreSQL to disconnect its clients and write its checkpoint.
STOP_TIMEOUT_S = 15.0

# How long a start that fails is tried again: the processes of a PostgreSQL that was killed need a
# moment to notice, and until then its memory counts as in use.
_FIRST_START_S = 5.0

# Pauses before PostgreSQL is started again; the last one for ever, as while a disk is full.
_RESTART_PAUSES_S = (0.2, 0.5, 1.0, 2.0)

_READY_POLL_S = 0.02

# prctl(2): the signal that a process gets when its parent ends. Linux only.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class KeptServer:
    """What a keeper has to know."""

    program: str
    data: str
    socket_folder: str
    log: str
    lock: str
    """Held by the keeper; the file names it."""
    users: str
    """Held by everybody who uses PostgreSQL, shared."""
    uid: int | None
    """The account that PostgreSQL runs as where this is root, which it refuses to run as."""
    gid: int | None

    def to_json(self) -> str:
        """The command line's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the command line's argument."""
        return cls(**json.loads(text))

    def command(self) -> list[str]:
        """The command line of PostgreSQL: reachable through its socket only, by its owner only."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": self.socket_folder,
            "unix_socket_permissions": "0700",
        }
        return [
            self.program,
            "-D",
            self.data,
            *(f"--{name}={value}" for name, value in options.items()),
        ]


class Keeper:
    """Starts PostgreSQL, and again, until nobody uses it."""

    def __init__(self, server: KeptServer, tell_ready: Callable[[], None]) -> None:
        self._server = server
        self._tell_ready = tell_ready
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._was_ready = False

    def run(self) -> bool:
        """Keep PostgreSQL running; returns at its end, False when it never could be started."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        threading.Thread(target=self._stop_when_unused, daemon=True).start()
        give_up_at = time.monotonic() + _FIRST_START_S
        failures = 0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            self._run_once()
            if not self._was_ready and time.monotonic() > give_up_at:
                return False
            if time.monotonic() - started_at > _FIRST_START_S:
                failures = 0
            self._stopping.wait(_RESTART_PAUSES_S[min(failures, len(_RESTART_PAUSES_S) - 1)])
            failures += 1
        return self._was_ready

    def stop(self) -> None:
        """Let PostgreSQL disconnect its clients and end."""
        self._stopping.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def _stop_when_unused(self) -> None:
        # Held until this process ends: a new user waits for the end, and then starts a new keeper.
        self._unused = hold_when_unused(Path(self._server.users))
        self.stop()
        time.sleep(STOP_TIMEOUT_S)
        if self._process is not None:
            # Immediate shutdown, without a checkpoint: a client that was stopped cannot prevent it.
            self._process.send_signal(signal.SIGQUIT)

    def _run_once(self) -> None:
        try:
            process = self._start()
        except OSError as error:
            # Such as no memory for one more process. The log may be on a disk that is full.
            with suppress(OSError):
                os.write(1, f"keeper: PostgreSQL cannot be started: {error}\n".encode())
            return
        self._process = process
        if self._stopping.is_set():
            # The request to stop came between two starts, when there was nobody to tell.
            process.send_signal(signal.SIGINT)
        while process.poll() is None and not self._was_ready:
            if is_ready(Path(self._server.data), process.pid):
                self._was_ready = True
                self._tell_ready()
            time.sleep(_READY_POLL_S)
        process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self._server.command(),
            stdin=subprocess.DEVNULL,
            cwd="/",
            umask=0o077,
            # The signal comes when the thread ends that started the process, so this must be the
            # main one. Other threads only wait for a lock, so the child can run Python first.
            preexec_fn=_end_with_parent,
            user=self._server.uid,
            group=self._server.gid,
            extra_groups=None if self._server.uid is None else [],
        )


def is_ready(data: Path, pid: int) -> bool:
    """Whether the PostgreSQL with this number says that it takes connections."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return int(lines[0]) == pid and lines[-1].strip() == "ready"
    except (OSError, ValueError, IndexError):
        return False


def _end_with_parent() -> None:
    """On Linux, ask for a fast shutdown of this process when its parent is killed.

    Elsewhere the next keeper stops what it finds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def main(arguments: Sequence[str]) -> int:
    """Start a keeper in the background; return when PostgreSQL is ready, 1 when it cannot start."""
    server = KeptServer.from_json(arguments[0])
    reader, writer = os.pipe()
    # Two processes: the caller waits for the first one only, and never becomes the parent of the
    # second, whose remains it would have to take away.
    if os.fork():
        os.close(writer)
        return 0 if os.read(reader, 1) else 1
    os.close(reader)
    os.setsid()

    def tell_ready() -> None:
        # Whoever waited may have given up.
        with suppress(OSError):
            os.write(writer, b"1")
        os.close(writer)

    lock = hold(Path(server.lock), wait_s=2 * STOP_TIMEOUT_S)
    if lock is None:
        return 1
    lock.sign()
    _log_to(Path(server.log))
    return 0 if Keeper(server, tell_ready).run() else 1


def _log_to(log: Path) -> None:
    """Send what this process and PostgreSQL say to the log, and keep nothing of the caller open."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        target = null
    for source, number in ((null, 0), (target, 1), (target, 2)):
        os.dup2(source, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
