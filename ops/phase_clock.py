"""The phase clock: announces the phases of a long command and takes their times."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class PhaseClock:
    """Seconds of each phase; announces a phase when it begins. Lives as long as one command."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, announcement: str) -> Iterator[None]:
        """Announce the block on standard error and take its time."""
        print(f"── {announcement}", file=sys.stderr, flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
