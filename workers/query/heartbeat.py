"""The heartbeat of the decode thread: how long its present piece of work has taken.

A thread that waits for queries is healthy; one that began something and does not finish is not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heartbeat:
    """One thread marks its work; any thread may ask. Without a lock: one field, set in one step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_since_s: float | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark a piece of work."""
        self._busy_since_s = self._clock()
        try:
            yield
        finally:
            self._busy_since_s = None

    @property
    def busy_s(self) -> float:
        """Seconds since the present piece of work began; 0 while the thread waits."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else self._clock() - since_s
