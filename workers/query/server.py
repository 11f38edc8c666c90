"""Serving: the threads behind the query API. One decodes, one keeps the generations (`workers.query.residents`), one reports.

The decode thread alone owns the engines. What followers say is done between two batches of queries, so every answer comes from
one generation in one state; and before queries that wait, so that a rollback does not stand in line behind them.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import structlog

from schemas.errors import RetryLaterError, SigmaError, UsageError
from schemas.events import QueryServed, now
from stream.log.event_log import message
from workers.query.engine import Engine
from workers.query.reporter import Reporter, SearchableImages
from workers.query.residents import (
    ChangesApplied,
    EngineUpdate,
    GenerationLoaded,
    GenerationPromoted,
    GenerationUnloaded,
    LoadSearcher,
    ResidentGenerations,
    load_searcher,
)
from workers.query.searcher import Mode, Result, Searcher
from workers.query.shadowing import Shadows
from workers.runtime.metrics import QueryMetrics
from workers.runtime.services import Services

_BATCH = 16
_NEWEST = 10_000
"""Newest images that are compared at a switch."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PendingQuery:
    """One query on its way; the future gets a `Result` or an error."""

    text: str
    count: int
    mode: Mode
    generation: int | None
    answer: "Future[Result]" = field(default_factory=Future)
    asked: float = field(default_factory=time.monotonic)


class Server:
    """Holds generations and answers queries until closed."""

    def __init__(
        self,
        services: Services,
        name: str,
        stop: threading.Event,
        metrics: QueryMetrics,
        load: LoadSearcher = load_searcher,
    ) -> None:
        self._stop = stop
        self._metrics = metrics
        self._work: queue.SimpleQueue[PendingQuery | None] = queue.SimpleQueue()
        """None wakes the decode thread."""
        self._hands: queue.SimpleQueue[EngineUpdate] = queue.SimpleQueue()
        self._held: dict[int, Searcher] = {}
        self._live: Searcher | None = None
        self._keeper = ResidentGenerations(services, stop, metrics, self._hand, load)
        self._reporter = Reporter(services, name, stop, metrics)
        self._shadows = Shadows(services.settings.shadow_share, metrics, self._reporter.tell)
        self._threads = [
            threading.Thread(target=target, name=label, daemon=True)
            for label, target in (
                ("decode", self._decode),
                ("keep", self._keeper.run),
                ("report", self._reporter.run),
            )
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; queries that wait are refused."""
        self._stop.set()
        self._work.put(None)
        for thread in self._threads:
            thread.join(10)
        for searcher in self._held.values():
            searcher.close()

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def problem(self) -> str:
        """Why this worker is not ready; empty when it is."""
        return self._keeper.problem if self._live is None else ""

    def ask(self, query: PendingQuery) -> None:
        """Put a query in line; `RetryLaterError` while there is nothing to answer with."""
        if self._live is None:
            raise RetryLaterError(self.problem or "the query worker is starting; try again")
        self._work.put(query)

    def served(self, query: PendingQuery, result: Result, took_ms: float) -> None:
        """Report an answered query on `sigma.queries.served`, without making it wait."""
        self._metrics.queries.inc()
        self._metrics.latency.observe(took_ms / 1000)
        event = QueryServed(
            query=query.text,
            generation=result.generation,
            took_ms=took_ms,
            image_ids=tuple(hit.image_id for hit in result.hits),
            scores=tuple(hit.score for hit in result.hits),
        )
        self._reporter.tell(message(event, event.query_id))

    # ------------------------------------------------------------------ decode

    def _hand(self, item: EngineUpdate) -> None:
        self._hands.put(item)
        self._work.put(None)

    def _decode(self) -> None:
        while not self._stop.is_set():
            waiting = self._waiting()
            for _ in range(self._hands.qsize()):
                self._take(self._hands.get())
            self._answer(waiting)
        self._refuse_the_rest()

    def _waiting(self) -> list[PendingQuery]:
        """The next batch of queries, perhaps an empty one."""
        found = [self._next()]
        with contextlib.suppress(queue.Empty):
            while len(found) < _BATCH:
                found.append(self._work.get_nowait())
        return [query for query in found if query is not None]

    def _next(self) -> PendingQuery | None:
        """The next query, or that something else is to be done; while nobody waits, comparisons with a candidate go on."""
        while self._shadows.waiting:
            try:
                return self._work.get_nowait()
            except queue.Empty:
                self._shadows.step()
        return self._work.get()

    def _answer(self, waiting: Sequence[PendingQuery]) -> None:
        """Each query from the generation it names, or the live one; one generation from start to end."""
        groups: dict[tuple[int, Mode], list[PendingQuery]] = {}
        for query in waiting:
            number = (
                query.generation
                if query.generation is not None
                else self._live.generation.id
                if self._live
                else None
            )
            if query.answer.cancelled():
                continue
            if number in self._held:
                groups.setdefault((number, query.mode), []).append(query)
            else:
                query.answer.set_exception(
                    UsageError(
                        f"generation {query.generation} is not served here; leave it out for the live one"
                    )
                )
        for (number, mode), group in groups.items():
            self._answer_group(self._held[number], group, mode)

    def _answer_group(self, searcher: Searcher, group: Sequence[PendingQuery], mode: Mode) -> None:
        try:
            results = searcher.search(
                [query.text for query in group], max(query.count for query in group), mode
            )
        except (
            Exception
        ) as error:  # one bad batch must not end the worker: its queries fail, the next ones do not
            log.exception("queries failed", count=len(group))
            self._metrics.failures.inc(len(group))
            for query in group:
                query.answer.set_exception(
                    error
                    if isinstance(error, SigmaError)
                    else RetryLaterError("the query failed; try again")
                )
            return
        self._metrics.batch.observe(len(group))
        for query, result in zip(group, results, strict=True):
            cut = Result(
                result.query,
                result.generation,
                result.hits[: query.count],
                result.candidates,
                result.captions[: query.count],
            )
            self._metrics.candidates.observe(result.candidates)
            query.answer.set_result(cut)
            if mode == "fused" and searcher is self._live:
                self._shadows.offer(
                    query.text,
                    searcher,
                    [self._held[one] for one in self._keeper.shadows if one in self._held],
                )

    def _take(self, item: EngineUpdate) -> None:
        """Do what a follower says. Messages of a searcher that was replaced come to nothing."""
        if isinstance(item, GenerationLoaded):
            self._hold(item.searcher)
        elif self._held.get(item.searcher.generation.id) is item.searcher:
            if isinstance(item, ChangesApplied):
                self._apply(item)
            elif isinstance(item, GenerationPromoted):
                self._lead(item.searcher)
            elif isinstance(item, GenerationUnloaded):
                self._drop(item.searcher)

    def _hold(self, searcher: Searcher) -> None:
        before = self._held.get(searcher.generation.id)
        self._held[searcher.generation.id] = searcher
        log.info(
            "generation is held",
            generation=searcher.generation.id,
            images=searcher.engine.trie.images,
        )
        if before is not None:
            self._shadows.clear()
            if before is self._live:
                self._lead(searcher)
            before.close()

    def _lead(self, searcher: Searcher) -> None:
        before, self._live = self._live, searcher
        self._keeper.leading = searcher.generation.id
        self._measure(searcher.engine)
        if before is None or before is searcher:
            log.info(
                "generation is served",
                generation=searcher.generation.id,
                images=searcher.engine.trie.images,
            )
            return
        self._shadows.clear()
        # Its own follower brought these, perhaps before that of the other one did, and nobody said so yet.
        fresh = np.setdiff1d(
            searcher.engine.gallery.newest(_NEWEST), before.engine.gallery.newest(2 * _NEWEST)
        )
        if len(fresh):
            self._reporter.tell(SearchableImages(fresh, now()))
        if before.generation.id != searcher.generation.id:
            self._metrics.switches.inc()
            log.info(
                "generation is served",
                generation=searcher.generation.id,
                before=before.generation.id,
            )

    def _apply(self, item: ChangesApplied) -> None:
        keys = item.searcher.engine.apply(item.changes)
        if item.searcher is self._live:
            if len(keys):
                self._reporter.tell(SearchableImages(keys, now()))
            self._measure(item.searcher.engine)

    def _drop(self, searcher: Searcher) -> None:
        if searcher is self._live:
            # It became live again in the very moment of its dismissal: it answers until the keeper, which sees it live too,
            # has loaded it anew.
            return
        del self._held[searcher.generation.id]
        self._shadows.clear()
        searcher.close()
        log.info("generation is freed", generation=searcher.generation.id)

    def _measure(self, engine: Engine) -> None:
        self._metrics.images.set(engine.trie.images)
        self._metrics.leaves.set(engine.trie.branches.leaves)
        self._metrics.generation.set(engine.generation)

    def _refuse_the_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._work.get_nowait()
                if isinstance(item, PendingQuery):
                    item.answer.set_exception(
                        RetryLaterError("the query worker is stopping; ask another one")
                    )
