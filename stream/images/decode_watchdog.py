"""The watchdog: ends a decoding process that computes for too long.

Computing and not waiting counts. On a busy machine an ordinary picture waits for its turn longer
than a hostile one computes on an idle machine, and must not be refused for that.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# Times the limit that a process may take by the clock: one that sleeps uses no processor at all.
_CLOCK_FACTOR = 12

# Seconds between two looks at least.
_SHORTEST_WAIT_S = 0.05


class Watchdog:
    """Kills a process within a `with` block that takes too long; `overdue` tells that it did."""

    def __init__(self, process: "subprocess.Popen[bytes]", limit_s: float) -> None:
        self.overdue = False
        self._process = process
        self._limit_s = limit_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="decode watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        # Joined: a kill after this picture would hit the next one.
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        began_computing = _computed_s(self._process.pid)
        left_s = self._limit_s
        while not self._done.wait(max(_SHORTEST_WAIT_S, left_s)):
            waited_s = time.monotonic() - began
            computed = _computed_s(self._process.pid)
            if computed is None or began_computing is None:
                left_s = self._limit_s - waited_s
            else:
                left_s = self._limit_s - (computed - began_computing)
            if left_s <= 0 or waited_s >= _CLOCK_FACTOR * self._limit_s:
                self.overdue = True
                self._process.kill()
                return


def _computed_s(pid: int) -> float | None:
    """Seconds of processor time of a process so far; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold spaces: proc(5).
    fields = status.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
