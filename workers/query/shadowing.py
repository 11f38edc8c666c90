"""Shadowing: a candidate answers a share of the live queries too, while no query waits."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import structlog

from schemas.records import IntArray
from workers.query.engine import QueryEngine, RankedImages
from workers.query.searcher import Searcher
from workers.repository.shadow_queries import ShadowQuery
from workers.runtime.query_metrics import QueryMetrics

# Images of each answer that are compared.
DEPTH = 10

# Queries that may wait for an idle moment; more are dropped, so a busy worker compares less.
BACKLOG = 32

# Images up to which exact dense search is compared too: it reads every embedding, which takes a
# few milliseconds at this size.
EXACT_LIMIT = 20_000

log = structlog.get_logger()


class ShadowQueue:
    """Comparisons that wait. The decode thread owns it, and takes one step at a time."""

    def __init__(
        self, share: float, metrics: QueryMetrics, report: Callable[[ShadowQuery], None]
    ) -> None:
        """`share` is the probability, 0 to 1, that a live query is compared."""
        self._share = share
        self._metrics = metrics
        self._report = report
        # Not seeded: several workers should compare different queries.
        self._random = random.Random()
        self._comparisons: deque[Iterator[None]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether there is a step to take."""
        return bool(self._comparisons)

    def offer(
        self,
        text: str,
        live: Searcher[QueryEngine],
        candidates: Sequence[Searcher[QueryEngine]],
    ) -> None:
        """Queue a query that the live generation answered, by chance, for one of the candidates."""
        if not candidates or self._random.random() >= self._share:
            return
        if len(self._comparisons) >= BACKLOG:
            self._metrics.shadow_dropped.inc()
            return
        candidate = self._random.choice(candidates)
        self._comparisons.append(self._compare(text, live, candidate))

    def step(self) -> None:
        """Continue the oldest comparison, for about as long as one query takes."""
        comparison = self._comparisons[0]
        try:
            with suppress(StopIteration):
                next(comparison)
                return
        except Exception:
            # A candidate that cannot answer is a result of the comparison: queries go on.
            log.exception("shadow query failed")
            self._metrics.shadow_failures.inc()
        self._comparisons.popleft()

    def clear(self) -> None:
        """Drop what waits: its generations may be unloaded."""
        self._metrics.shadow_dropped.inc(len(self._comparisons))
        self._comparisons.clear()

    def _compare(
        self, text: str, live: Searcher[QueryEngine], candidate: Searcher[QueryEngine]
    ) -> Iterator[None]:
        """Let both answer, each alone; yields after each step.

        The order is random, so that neither always finds the processor's caches warm.
        """
        pair = [live, candidate]
        took_ms: dict[int, float] = {}
        answers: dict[int, RankedImages] = {}
        for searcher in self._random.sample(pair, 2):
            number = searcher.generation.id
            started_s = time.perf_counter()
            (answers[number],) = searcher.engine.answer([text], DEPTH, live.settings)
            took_ms[number] = (time.perf_counter() - started_s) * 1000
            yield
        # Each against its own exact search: the two generations may hold different images.
        recalls: list[float | None] = []
        for searcher in pair:
            recalls.append(_exact_recall(searcher.engine, text, answers[searcher.generation.id]))
            yield
        live_number = live.generation.id
        candidate_number = candidate.generation.id
        self._report(
            ShadowQuery(
                candidate_number,
                live_number,
                text,
                took_ms[live_number],
                took_ms[candidate_number],
                overlap(answers[live_number].image_keys, answers[candidate_number].image_keys),
                recalls[0],
                recalls[1],
            )
        )
        self._metrics.shadow_queries.inc()


def overlap(first: IntArray, second: IntArray) -> float:
    """Return the share of images that two answers have in common, of the longer one's length."""
    shared = set(first.tolist()) & set(second.tolist())
    return len(shared) / max(1, len(first), len(second))


def recall_of(exact: IntArray, answer: IntArray) -> float:
    """Return the share of the exact answer's images that the other answer contains."""
    wanted = set(exact.tolist())
    return len(wanted & set(answer.tolist())) / max(1, len(wanted))


def _exact_recall(engine: QueryEngine, text: str, answer: RankedImages) -> float | None:
    """Compare with the generation's own exact dense top ten; None for too large a gallery."""
    if not 0 < engine.images <= EXACT_LIMIT:
        return None
    (exact,) = engine.answer_exact(engine.encoder.embed_texts([text]), DEPTH)
    return recall_of(exact.image_keys, answer.image_keys)
