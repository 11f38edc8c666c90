"""Process identity: a process number alone says little, because numbers are used again.

Number and start time together name one process for as long as the machine runs.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_POLL_S = 0.05

# Places in /proc/PID/stat after the command's closing bracket: fields 3 and 22 of proc(5).
_STATE = 0
_START_TIME = 19


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, also after its number was given to another one."""

    pid: int
    started: float
    """When it started, in the operating system's own unit: only good for comparing."""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this number now; None when there is none, or only its remains."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    @classmethod
    def current(cls) -> Self:
        """This process."""
        found = cls.of(os.getpid())
        # The operating system always knows the process that asks.
        assert found is not None
        return found

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return _start_time(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; never to another process that has its number now."""
        if self.alive:
            # It may end between the look and the signal.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; whether it ended in time."""
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def end(self, timeout_s: float) -> None:
        """Ask it to stop, and kill it when it does not in time."""
        self.send(signal.SIGTERM)
        if not self.wait(timeout_s):
            self.send(signal.SIGKILL)
            self.wait(timeout_s)


def _start_time(pid: int) -> float | None:
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The command's name comes before, in brackets, and may hold spaces and brackets itself.
        fields = stat.rpartition(")")[2].split()
        # Z and X: it has ended and only waits for its parent to take notice.
        return None if fields[_STATE] in ("Z", "X") else float(fields[_START_TIME])
    try:
        process = psutil.Process(pid)
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if ended else float(process.create_time())
    except psutil.Error:
        return None
