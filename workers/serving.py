"""Serving: the threads behind the query API. One decodes, one follows the database, one reports.

The decode thread alone owns the engine. Queries and changes reach it through one queue, so a change is applied between two
batches of queries and every answer comes from one generation in one state.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from schemas.errors import RefuseToStartError, RetryLaterError, SigmaError, UsageError
from schemas.events import QueryServed, now
from schemas.records import IntArray
from stream.log import Message, message
from workers.engine import Engine
from workers.metrics import Metrics
from workers.repository.connection import Connection
from workers.repository.follow import Changes
from workers.repository.generations import live
from workers.repository.images import record_visibility
from workers.running import keep_running
from workers.searcher import Mode, Result, Searcher
from workers.services import Services

_BATCH = 16
_LOOK_S = 1.0
_REPORTS = 10_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Query:
    """One query on its way; the future gets a `Result` or an error."""

    text: str
    count: int
    mode: Mode
    generation: int | None
    answer: "Future[Result]" = field(default_factory=Future)
    asked: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Apply:
    searcher: Searcher
    changes: Changes


@dataclass(frozen=True, slots=True)
class _Switch:
    searcher: Searcher


@dataclass(frozen=True, slots=True)
class _Seen:
    """Image keys that answers may hold from a moment on."""

    keys: IntArray
    since: datetime


class Server:
    """Loads the live generation, follows it, and answers queries until closed."""

    def __init__(self, services: Services, name: str, stop: threading.Event, metrics: Metrics) -> None:
        self._services = services
        self._name = name
        self._stop = stop
        self._metrics = metrics
        self._work: queue.SimpleQueue[Query | _Apply | _Switch | None] = queue.SimpleQueue()
        self._reports: queue.Queue[_Seen | Message] = queue.Queue(_REPORTS)
        self._searcher: Searcher | None = None
        self.problem = "starting"
        """Why this worker is not ready; empty when it is."""
        self._threads = [
            threading.Thread(target=target, name=label, daemon=True)
            for label, target in (("decode", self._decode), ("follow", self._follow), ("report", self._report))
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

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def ask(self, query: Query) -> None:
        """Put a query in line; `RetryLaterError` while there is nothing to answer with."""
        if self._searcher is None:
            raise RetryLaterError(self.problem)
        self._work.put(query)

    # ------------------------------------------------------------------ decode

    def _decode(self) -> None:
        while not self._stop.is_set():
            item = self._work.get()
            waiting: list[Query] = []
            while item is not None:
                if isinstance(item, Query):
                    waiting.append(item)
                elif waiting:
                    self._answer(waiting)
                    waiting = []
                if isinstance(item, _Apply):
                    self._apply(item)
                elif isinstance(item, _Switch):
                    self._switch(item.searcher)
                if len(waiting) >= _BATCH:
                    break
                try:
                    item = self._work.get_nowait()
                except queue.Empty:
                    break
            if waiting:
                self._answer(waiting)
        self._refuse_the_rest()

    def _answer(self, waiting: list[Query]) -> None:
        searcher = self._searcher
        for mode in ("fused", "paper"):
            group = [query for query in waiting if query.mode == mode and not query.answer.cancelled()]
            wrong = [query for query in group if searcher is None or query.generation not in (None, searcher.generation.id)]
            for query in wrong:
                query.answer.set_exception(UsageError(f"generation {query.generation} is not served here; leave it out for the live one"))
            group = [query for query in group if query not in wrong]
            if group and searcher is not None:
                self._answer_group(searcher, group, mode)

    def _answer_group(self, searcher: Searcher, group: Sequence[Query], mode: Mode) -> None:
        try:
            results = searcher.search([query.text for query in group], max(query.count for query in group), mode)
        except Exception as error:  # one bad batch must not end the worker: its queries fail, the next ones do not
            log.exception("queries failed", count=len(group))
            self._metrics.failures.inc(len(group))
            for query in group:
                query.answer.set_exception(error if isinstance(error, SigmaError) else RetryLaterError("the query failed; try again"))
            return
        self._metrics.batch.observe(len(group))
        for query, result in zip(group, results, strict=True):
            cut = Result(result.query, result.generation, result.hits[: query.count], result.candidates, result.captions[: query.count])
            self._metrics.candidates.observe(result.candidates)
            query.answer.set_result(cut)

    def _apply(self, item: _Apply) -> None:
        if item.searcher is self._searcher:
            keys = item.searcher.engine.apply(item.changes)
            if len(keys):
                self._tell(_Seen(keys, now()))
            self._measure(item.searcher.engine)

    def _switch(self, searcher: Searcher) -> None:
        before, self._searcher = self._searcher, searcher
        self.problem = ""
        self._measure(searcher.engine)
        log.info("generation is served", generation=searcher.generation.id, images=searcher.engine.trie.images)
        if before is not None:
            before.close()

    def _measure(self, engine: Engine) -> None:
        self._metrics.images.set(engine.trie.images)
        self._metrics.leaves.set(engine.trie.branches.leaves)
        self._metrics.generation.set(engine.generation)

    def _refuse_the_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._work.get_nowait()
                if isinstance(item, Query):
                    item.answer.set_exception(RetryLaterError("the query worker is stopping; ask another one"))

    # ------------------------------------------------------------------ follow

    def _follow(self) -> None:
        keep_running(self._follow_session, self._stop, "query")

    def _follow_session(self, stop: threading.Event) -> None:
        """Load the live generation, warm it up, hand it over, then pass on its changes; again when another one is live."""
        with self._services.connect("query control") as conn:
            generation = live(conn)
            if generation is None:
                self.problem = "no generation is live yet; train one with: sigma train --manifest F"
                stop.wait(_LOOK_S)
                return
            try:
                searcher = Searcher(self._services, generation)
            except RefuseToStartError as error:
                self.problem = str(error)
                log.error("generation cannot be loaded", generation=generation.id, reason=str(error))
                stop.wait(5 * _LOOK_S)
                return
            searcher.search(["warm up"], 1)
            self._work.put(_Switch(searcher))
            while not stop.is_set():
                searcher.follower.wait(_LOOK_S)
                changes = searcher.follower.changes()
                if changes:
                    self._work.put(_Apply(searcher, changes))
                current = live(conn)
                if current is not None and current.id != generation.id:
                    return

    # ------------------------------------------------------------------ report

    def served(self, query: Query, result: Result, took_ms: float) -> None:
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
        self._tell(message(event, event.query_id))

    def _tell(self, report: "_Seen | Message") -> None:
        try:
            self._reports.put_nowait(report)
        except queue.Full:
            self._metrics.dropped.inc()

    def _report(self) -> None:
        keep_running(self._report_session, self._stop, "report")

    def _report_session(self, stop: threading.Event) -> None:
        events = self._services.log()
        with self._services.connect("query report") as conn:
            while not stop.is_set():
                try:
                    found = [self._reports.get(timeout=_LOOK_S)]
                except queue.Empty:
                    continue
                with contextlib.suppress(queue.Empty):
                    while len(found) < 500:
                        found.append(self._reports.get_nowait())
                events.publish(None, [report for report in found if isinstance(report, Message)])
                for report in found:
                    if isinstance(report, _Seen):
                        self._note(conn, report)

    def _note(self, conn: Connection, seen: _Seen) -> None:
        for seconds in record_visibility(conn, self._name, seen.keys.tolist(), seen.since):
            self._metrics.freshness.observe(seconds)
