"""The query line: queries that wait for the decode thread, no more than can be answered in time."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from schemas.errors import RetryLaterError
from workers.query.pending import PendingQuery

# Longest that a query should wait from joining until its own batch begins: for the batch that is
# being decoded and for those before it. The rest of a second is for its own batch and for HTTP.
BUDGET_S = 0.6

# Queries that may wait before the first batch has been measured.
START_LIMIT = 64

# More are never worth their memory.
MOST_WAITING = 4096

# When a refused client should try again: by then the line is a new one.
RETRY_AFTER_S = 1

# The pace is that of the latest batches, so many of them: about a second of overload.
_MEASURED_BATCHES = 9


class OverloadedError(RetryLaterError):
    """More queries wait than can be answered in time; the client should try again after a pause."""

    retry_after_s = RETRY_AFTER_S


@dataclass(frozen=True, slots=True)
class BatchPace:
    """How long one batch took."""

    queries: int
    seconds: float


def waiting_limit(batches: Sequence[BatchPace]) -> int:
    """Return how many queries may wait so that the last of them is answered in time."""
    if not batches:
        return START_LIMIT
    # While queries wait, batches are as full as they can be, and a full batch takes less for each
    # query: emptier ones tell nothing about overload.
    most = max(batch.queries for batch in batches)
    full = [batch for batch in batches if batch.queries >= most / 2]
    # The usual pace. The best one would promise what a busy machine does not keep, and a single
    # slow batch does not count.
    batch_s = median(batch.seconds for batch in full)
    query_s = median(batch.seconds / batch.queries for batch in full)
    affordable = (BUDGET_S - batch_s) / max(query_s, 0.5 * BUDGET_S / MOST_WAITING)
    return max(1, min(MOST_WAITING, int(affordable)))


class QueryLine:
    """First come, first served. Any thread may join and leave; one thread takes.

    The limit is a fixed number, or follows from the pace of the latest batches.
    """

    def __init__(self, fixed_limit: int | None = None) -> None:
        """With `fixed_limit` None the limit follows from the measured pace."""
        self._fixed_limit = fixed_limit
        self._batches: deque[BatchPace] = deque(maxlen=_MEASURED_BATCHES)
        """Changed by the thread that takes."""
        self._limit = fixed_limit or START_LIMIT
        self._condition = threading.Condition()
        """Guards what follows; notified when there is something to do."""
        # A dictionary, because it keeps the order and removes in one step. The values are nothing.
        self._waiting: dict[PendingQuery, None] = {}
        self._woken = False

    @property
    def limit(self) -> int:
        """How many queries may wait."""
        return self._limit

    @property
    def is_full(self) -> bool:
        """Whether the next query would be refused."""
        return len(self._waiting) >= self.limit

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, query: PendingQuery) -> None:
        """Put a query at the end; `OverloadedError` when too many wait."""
        with self._condition:
            if self.is_full:
                raise OverloadedError(
                    f"{len(self._waiting):,} queries wait already, as many as can be answered in"
                    f" time; try again in {RETRY_AFTER_S} second"
                )
            self._waiting[query] = None
            self._condition.notify()

    def leave(self, query: PendingQuery) -> None:
        """Free the place of a query whose client gave up."""
        with self._condition:
            self._waiting.pop(query, None)
        query.answer.cancel()

    def wake(self) -> None:
        """Let `take` return though no query waits."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def take(self, most: int, *, wait: bool = True) -> list[PendingQuery]:
        """Take the first queries, `most` of them or fewer.

        With `wait`, returns when there is one or `wake` was called; without, at once.
        """
        with self._condition:
            while wait and not self._waiting and not self._woken:
                self._condition.wait()
            self._woken = False
            taken = list(self._waiting)[:most]
            for query in taken:
                del self._waiting[query]
        return taken

    def record_pace(self, queries: int, seconds: float) -> None:
        """Take note of how long a batch took. For the thread that takes."""
        self._batches.append(BatchPace(queries, seconds))
        if self._fixed_limit is None:
            self._limit = waiting_limit(self._batches)
