"""Shadowing: a share of the live queries is answered by a candidate too, in moments when nobody waits."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import structlog

from workers.query.engine import Answer
from workers.query.searcher import Searcher
from workers.repository.shadow_queries import ShadowQuery
from workers.runtime.metrics import QueryMetrics

DEPTH = 10
"""Images of each answer that are compared."""

BACKLOG = 32
"""Queries that may wait for an idle moment; more are dropped, for a busy worker has better things to do."""

EXACT_LIMIT = 20_000
"""Images up to which exact dense search is asked too: it reads every embedding, a few milliseconds at this size."""

log = structlog.get_logger()


class Shadows:
    """Comparisons that wait. Owned by the decode thread, which takes one step at a time and looks for queries in between."""

    def __init__(
        self, share: float, metrics: QueryMetrics, tell: Callable[[ShadowQuery], None]
    ) -> None:
        self._share = share
        self._metrics = metrics
        self._tell = tell
        self._chance = random.Random()
        self._waiting: deque[Iterator[None]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether there is a step to take."""
        return bool(self._waiting)

    def offer(self, text: str, live: Searcher, candidates: list[Searcher]) -> None:
        """A query that the live generation answered: by chance it is put in line for one of the candidates."""
        if not candidates or self._chance.random() >= self._share:
            return
        if len(self._waiting) >= BACKLOG:
            self._metrics.shadow_dropped.inc()
            return
        self._waiting.append(self._compare(text, live, self._chance.choice(candidates)))

    def step(self) -> None:
        """Go on with the oldest comparison, for about as long as one query takes."""
        comparison = self._waiting[0]
        try:
            with suppress(StopIteration):
                next(comparison)
                return
        except (
            Exception
        ):  # a candidate that cannot answer is a finding, and no reason to stop answering
            log.exception("shadow query failed")
            self._metrics.shadow_failures.inc()
        self._waiting.popleft()

    def clear(self) -> None:
        """Forget what waits: its generations may be freed."""
        self._metrics.shadow_dropped.inc(len(self._waiting))
        self._waiting.clear()

    def _compare(self, text: str, live: Searcher, candidate: Searcher) -> Iterator[None]:
        """Both answer alone, in an order left to chance, so that neither always finds the processor's caches warm."""
        settings = live.services.settings.retrieval
        pair = [live, candidate]
        took: dict[int, float] = {}
        found: dict[int, Answer] = {}
        for searcher in self._chance.sample(pair, 2):
            began = time.perf_counter()
            (found[searcher.generation.id],) = searcher.engine.answer([text], DEPTH, settings)
            took[searcher.generation.id] = (time.perf_counter() - began) * 1000
            yield
        recalls: list[float | None] = []
        for searcher in pair:
            recalls.append(_exact_recall(searcher, text, found[searcher.generation.id]))
            yield
        ours, theirs = live.generation.id, candidate.generation.id
        shared = set(found[ours].image_keys.tolist()) & set(found[theirs].image_keys.tolist())
        overlap = len(shared) / max(1, len(found[ours].image_keys), len(found[theirs].image_keys))
        self._tell(
            ShadowQuery(
                theirs, ours, text, took[ours], took[theirs], overlap, recalls[0], recalls[1]
            )
        )
        self._metrics.shadow_queries.inc()


def _exact_recall(searcher: Searcher, text: str, answer: Answer) -> float | None:
    """Share of the generation's own exact dense top ten that it returned; None when its gallery is too large."""
    engine = searcher.engine
    if not 0 < engine.trie.images <= EXACT_LIMIT:
        return None
    (exact,) = engine.answer_exact(engine.encoder.embed_texts([text]), DEPTH)
    wanted = set(exact.image_keys.tolist())
    return len(wanted & set(answer.image_keys.tolist())) / max(1, len(wanted))
