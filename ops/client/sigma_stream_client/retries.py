"""Retries: how long a call is tried again, and how long it pauses in between."""

import random
from dataclasses import dataclass

# Statuses after which the same request may be answered: too many at once, not ready, restarting.
RETRIED = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a call may take with all its tries.

    Pauses double from `first_s` to `longest_s`, each drawn between half of it and all of it, so
    that clients which were refused together do not come back together. A `Retry-After` of the
    service is the shortest pause.
    """

    total_s: float = 60.0
    """Seconds from the first try to the last one."""
    first_s: float = 0.1
    longest_s: float = 5.0

    def pause(self, tries: int, retry_after_s: float | None) -> float:
        """Seconds to wait after so many tries, at least 1."""
        # The exponent is bounded: a float has none for thousands of tries.
        length = min(self.longest_s, self.first_s * 2.0 ** min(tries - 1, 30))
        drawn = length * random.uniform(0.5, 1.0)
        return drawn if retry_after_s is None else max(drawn, retry_after_s + drawn / 2)


def seconds(retry_after: str | None) -> float | None:
    """The seconds of a `Retry-After` header; None for a date or nothing."""
    if retry_after is None or not retry_after.isdecimal():
        return None
    return float(retry_after)
