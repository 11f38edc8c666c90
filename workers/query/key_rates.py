"""The rate limit of each key: a token bucket, which holds one second's requests when it is full."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """How much one key may still send."""

    tokens: float
    """Requests that may come at once."""
    filled_s: float
    """When that was so, on the monotonic clock."""


def burst(rate: float) -> float:
    """Requests that fit into a full bucket: those of one second, and at least one."""
    return max(1.0, rate)


def spend(
    bucket: TokenBucket, rate: float, now_s: float, requests: int = 1
) -> tuple[TokenBucket, float]:
    """Take requests out; returns the new bucket, and the seconds to wait if it has not enough.

    A refused request costs nothing: who asks too often is still answered at the rate. More than fit
    into a bucket empty it.
    """
    # Never negative, whatever the clock does.
    passed_s = max(0.0, now_s - bucket.filled_s)
    tokens = min(burst(rate), bucket.tokens + passed_s * rate)
    cost = min(float(requests), burst(rate))
    if tokens >= cost:
        return TokenBucket(tokens - cost, now_s), 0.0
    return TokenBucket(tokens, now_s), (cost - tokens) / rate


class KeyRates:
    """One bucket for each configured key that was used. For the thread of the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, rate: float, requests: int = 1) -> int:
        """Admit requests of a key, or return the whole seconds after which to try again."""
        now_s = self._clock()
        bucket = self._buckets.get(name) or TokenBucket(burst(rate), now_s)
        self._buckets[name], wait_s = spend(bucket, rate, now_s, requests)
        return math.ceil(wait_s)

    def forget(self, name: str) -> None:
        """Drop the bucket of a key that was revoked."""
        self._buckets.pop(name, None)
