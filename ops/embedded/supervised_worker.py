"""The supervised worker: one worker process of a home, started again whenever it dies.

Nothing that goes wrong with starting it ends the supervisor: a full disk and a lack of memory pass,
and then it starts.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import structlog

from ops.embedded.isolation import python_module
from ops.embedded.log_tail import last_error
from ops.embedded.process_identity import ProcessIdentity
from ops.embedded.supervisor_record import WorkerRecord

# Shortest time between two starts of one worker: a crash loop must not fill the machine.
FIRST_PAUSE_S = 1.0

# Longest time between them: work goes on soon after the cause has ended.
LONGEST_PAUSE_S = 5.0

# A worker that lived so long had started well: its next death is a new story.
_SETTLED_S = 30.0

# How long a death is remembered: status tells of workers that die again and again.
DEATHS_KEPT_S = 600.0

log = structlog.get_logger()


class SupervisedWorker:
    """One worker: how to start it, its current process, and how it died."""

    def __init__(
        self,
        role: str,
        environment: Mapping[str, str],
        log_file: Path,
        listener: socket.socket | None,
    ) -> None:
        self.role = role
        self._environment = environment
        self._log_file = log_file
        self._inherited = () if listener is None else (listener.fileno(),)
        """File descriptors that the worker finds open under the same numbers."""
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: ProcessIdentity | None = None
        self._started_at = 0.0
        self._log_begin = 0
        self._pause_s = FIRST_PAUSE_S
        self._deaths: tuple[float, ...] = ()
        self._last_error = ""

    def watch(self) -> bool:
        """Start it if it does not run and its pause is over; return whether anything changed."""
        if self._process is not None:
            exit_code = self._process.poll()
            if exit_code is None:
                return False
            self._note_death(exit_code)
            return True
        if time.monotonic() - self._started_at < self._pause_s and self._deaths:
            return False
        return self._start()

    def record(self) -> WorkerRecord:
        """What others are told about it."""
        oldest = time.monotonic() - DEATHS_KEPT_S
        deaths = tuple(moment for moment in self._deaths if moment > oldest)
        return WorkerRecord(
            self.role, self._identity, deaths, self._last_error, str(self._log_file)
        )

    def ask_to_stop(self) -> None:
        """Let it finish its batch and end."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """Wait for its end; kill it when it takes too long."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close_pipe()

    def _start(self) -> bool:
        self._started_at = time.monotonic()
        try:
            self._process = self._spawn()
        except OSError as error:
            self._note_failure(f"it cannot be started: {error}")
            log.error("worker cannot be started", worker=self.role, reason=str(error))
            return True
        self._identity = ProcessIdentity.of(self._process.pid)
        return True

    def _spawn(self) -> "subprocess.Popen[bytes]":
        options = [f"--listener={number}" for number in self._inherited]
        output = self._open_log()
        try:
            return subprocess.Popen(
                python_module("ops.cli", "worker", self.role, "--stop-with-parent", *options),
                pass_fds=self._inherited,
                env=self._environment,
                stdout=output,
                stderr=output,
                # Its other end closes with this process, however it ends: that stops the worker.
                stdin=subprocess.PIPE,
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def _open_log(self) -> IO[bytes] | int:
        """Open the log; without room for one more file the worker runs without."""
        try:
            file = self._log_file.open("ab")
            self._log_begin = file.tell()
            return file
        except OSError:
            return subprocess.DEVNULL

    def _note_death(self, exit_code: int) -> None:
        if time.monotonic() - self._started_at > _SETTLED_S:
            self._pause_s = FIRST_PAUSE_S
        said = last_error(self._log_file, self._log_begin)
        ended = _ending(exit_code)
        self._note_failure(f"{ended}: {said}" if said and exit_code > 0 else ended)
        self._close_pipe()
        self._process = None
        self._identity = None
        log.error(
            "worker died, restarting it",
            worker=self.role,
            exit_code=exit_code,
            reason=self._last_error,
            log=str(self._log_file),
        )

    def _note_failure(self, reason: str) -> None:
        if self._deaths:
            self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
        # Not the time of day, which can be set back. All processes of a machine agree on this.
        self._deaths = (*self.record().deaths, time.monotonic())
        self._last_error = reason

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def _ending(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
