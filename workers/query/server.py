"""The query server: the threads behind the query API.

One thread decodes, one keeps the generations in memory (`workers.query.residents`), one reports
(`workers.query.reporter`). The decode thread applies engine updates before the queries that wait,
so a rollback does not wait behind them.
"""

import contextlib
import queue
import threading
from collections.abc import Sequence

import structlog

from schemas.errors import RetryLaterError, SigmaError, UsageError
from schemas.events import QueryServed
from stream.log.event_log import message
from workers.query.engine import QueryEngine
from workers.query.pending import PendingQuery, QueryGroup, group_queries
from workers.query.reporter import Reporter
from workers.query.residents import ResidentGenerations
from workers.query.searcher import AnsweredQuery, Searcher
from workers.query.served import ServedGenerations
from workers.query.shadowing import ShadowQueue
from workers.query.updates import EngineUpdate, LoadSearcher
from workers.runtime.metrics import QueryMetrics
from workers.runtime.services import Services

# Most queries decoded together: more would make each of them wait longer than they save.
_BATCH = 16

# Longest wait for each thread at the end.
_JOIN_S = 10.0

log = structlog.get_logger()


class QueryServer:
    """Keeps generations in memory and answers queries, from `start` to `close`."""

    def __init__(
        self,
        services: Services,
        name: str,
        stop: threading.Event,
        metrics: QueryMetrics,
        load: LoadSearcher,
    ) -> None:
        """`name` tells this worker from others in what it reports."""
        self._stop = stop
        self._metrics = metrics
        self._queries: queue.SimpleQueue[PendingQuery | None] = queue.SimpleQueue()
        """None wakes the decode thread."""
        self._updates: queue.SimpleQueue[EngineUpdate] = queue.SimpleQueue()
        self._residents = ResidentGenerations(services, load, self._send, stop, metrics)
        self._reporter = Reporter(name, services.connect, services.open_log, stop, metrics)
        self._shadows = ShadowQueue(services.settings.shadow_share, metrics, self._reporter.submit)
        self._served = ServedGenerations(
            metrics, self._shadows, self._reporter.submit, self._set_leading
        )
        self._threads = [
            threading.Thread(target=self._decode, name="decode", daemon=True),
            threading.Thread(target=self._residents.run, name="residents", daemon=True),
            threading.Thread(target=self._reporter.run, name="report", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; queries that wait are refused."""
        self._stop.set()
        self._queries.put(None)
        for thread in self._threads:
            thread.join(_JOIN_S)
        self._served.close()

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def problem(self) -> str:
        """Why this worker is not ready; empty when it is."""
        # Read by HTTP's thread without a lock: the decode thread replaces `live` in one step.
        return self._residents.problem if self._served.live is None else ""

    def submit(self, query: PendingQuery) -> None:
        """Put a query in line; `RetryLaterError` while no generation can answer."""
        if self._served.live is None:
            raise RetryLaterError(self.problem or "the query worker is starting; try again")
        self._queries.put(query)

    def report_served(self, query: PendingQuery, answer: AnsweredQuery, took_ms: float) -> None:
        """Report an answered query on `sigma.queries.served`, without making it wait."""
        self._metrics.queries.inc()
        self._metrics.latency.observe(took_ms / 1000)
        event = QueryServed(
            query=query.text,
            generation=answer.generation,
            took_ms=took_ms,
            image_ids=tuple(hit.image_id for hit in answer.hits),
            scores=tuple(hit.score for hit in answer.hits),
        )
        self._reporter.submit(message(event, event.query_id))

    def _set_leading(self, number: int) -> None:
        self._residents.leading = number

    def _send(self, update: EngineUpdate) -> None:
        # In this order: the decode thread, once awake, has to find the update.
        self._updates.put(update)
        self._queries.put(None)

    # The decode thread, from here on.

    def _decode(self) -> None:
        while not self._stop.is_set():
            queries = self._next_batch()
            # Only those that are there now: a follower that sends on and on must not stop queries.
            for _ in range(self._updates.qsize()):
                self._served.take(self._updates.get())
            self._answer(queries)
        self._refuse_waiting()

    def _next_batch(self) -> list[PendingQuery]:
        """Wait for queries or updates; returns the next batch of queries, perhaps an empty one."""
        taken = [self._next()]
        with contextlib.suppress(queue.Empty):
            while len(taken) < _BATCH:
                taken.append(self._queries.get_nowait())
        return [query for query in taken if query is not None]

    def _next(self) -> PendingQuery | None:
        """Wait for the next query, or for None: an update. Meanwhile comparisons go on."""
        while self._shadows.waiting:
            try:
                return self._queries.get_nowait()
            except queue.Empty:
                self._shadows.step()
        return self._queries.get()

    def _answer(self, queries: Sequence[PendingQuery]) -> None:
        claimed = [query for query in queries if query.claim()]
        grouped = group_queries(claimed, self._served.live_number, self._served.numbers)
        for query in grouped.unserved:
            query.answer.set_exception(
                UsageError(
                    f"generation {query.generation} is not served here; "
                    "leave it out for the live one"
                )
            )
        for group in grouped.groups:
            self._answer_group(self._served.get(group.generation), group)

    def _answer_group(self, searcher: Searcher[QueryEngine], group: QueryGroup) -> None:
        texts = [query.text for query in group.queries]
        try:
            answers = searcher.search(texts, group.count, group.mode)
        except Exception as error:
            # One bad batch must not end the worker: its queries fail, the next ones do not.
            log.exception("queries failed", count=len(texts))
            self._fail(group, error)
            return
        self._metrics.batch.observe(len(texts))
        compared = group.mode == "fused" and searcher is self._served.live
        for query, answer in zip(group.queries, answers, strict=True):
            self._metrics.candidates.observe(answer.candidates)
            query.answer.set_result(answer.first(query.count))
            if compared:
                candidates = self._served.select(self._residents.shadows)
                self._shadows.offer(query.text, searcher, candidates)

    def _fail(self, group: QueryGroup, error: Exception) -> None:
        self._metrics.failures.inc(len(group.queries))
        if not isinstance(error, SigmaError):
            error = RetryLaterError("the query failed; try again")
        for query in group.queries:
            query.answer.set_exception(error)

    def _refuse_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                query = self._queries.get_nowait()
                if query is not None and query.claim():
                    query.answer.set_exception(
                        RetryLaterError("the query worker is stopping; ask another one")
                    )
