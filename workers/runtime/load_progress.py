"""Load progress: a process that loads a model says that it gets on, for as long as it does.

Weights of gigabytes take minutes from a slow disk. Whoever waits for a worker waits as long as it
hears of work, and gives up on one that is stuck.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Seconds between two looks at what was done.
INTERVAL_S = 2.0

# Least work between two looks that counts: a process that only waits answers requests meanwhile.
LEAST_SHARE = 0.1
LEAST_BYTES = 1 << 20

_MEBIBYTE = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What a process has done since it started: `cpu_s` of processor time, and bytes read."""

    cpu_s: float
    read_bytes: int

    @classmethod
    def of_this_process(cls) -> "Work":
        """All threads together. Bytes are 0 where the system does not count them."""
        times = os.times()
        return cls(times.user + times.system, _bytes_read())

    def is_beyond(self, earlier: "Work", interval_s: float) -> bool:
        """Whether it is enough more than the work of `interval_s` seconds before."""
        busy = self.cpu_s - earlier.cpu_s > LEAST_SHARE * interval_s
        return busy or self.read_bytes - earlier.read_bytes > LEAST_BYTES


@contextmanager
def loading_progress(
    what: str,
    say: Say,
    *,
    interval_s: float = INTERVAL_S,
    work: Callable[[], Work] = Work.of_this_process,
) -> Iterator[None]:
    """Say at the beginning, and then while the block works, what is being loaded and how far it is.

    Each sentence differs from the one before. A block that waits for something says nothing more.
    """
    ended = threading.Event()

    def report() -> None:
        begun = earlier = work()
        say(f"loading {what}")
        while not ended.wait(interval_s):
            now = work()
            if now.is_beyond(earlier, interval_s):
                read = (now.read_bytes - begun.read_bytes) / _MEBIBYTE
                cpu_s = now.cpu_s - begun.cpu_s
                say(f"loading {what}: {read:,.0f} MiB read, {cpu_s:,.1f} s of processor time")
                earlier = now

    thread = threading.Thread(target=report, name="load progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bytes_read() -> int:
    """Bytes that this process has read: by calls, and through mapped files from the disk."""
    total = 0
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(":")
            if name in ("rchar", "read_bytes"):
                total += int(count)
    return total
