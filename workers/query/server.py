"""The query server: the threads behind the query API.

One thread decodes, one keeps the generations in memory (`workers.query.residents`), one reports
(`workers.query.reporter`). The decode thread applies engine updates before the queries that wait,
so a rollback does not wait behind them.
"""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from schemas.errors import RetryLaterError, SigmaError, UsageError
from schemas.events import QueryServed
from stream.log.event_log import message
from workers.query.engine import QueryEngine
from workers.query.heartbeat import Heartbeat
from workers.query.pending import PendingQuery, QueryGroup, group_queries
from workers.query.query_line import MOST_WAITING, OverloadedError, QueryLine
from workers.query.reporter import Reporter
from workers.query.residents import ResidentGenerations
from workers.query.searcher import AnsweredQuery, Searcher
from workers.query.served import ServedGenerations
from workers.query.shadowing import ShadowQueue
from workers.query.updates import EngineUpdate, GenerationLoaded, LoadSearcher
from workers.runtime.process import TRANSIENT_ERRORS
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.services import Services
from workers.runtime.vital_thread import EndProcess, VitalThread, end_process

# Most queries decoded together: more would make each of them wait longer than they save.
_BATCH = 16

# Most explanations that wait: each takes as long as a batch of queries.
_ERRANDS = 16

# Seconds of updates before a batch of queries: less than the batch takes. What is left over comes
# before the next one.
UPDATES_S = 0.004

# Longest wait for each thread at the end.
_JOIN_S = 10.0

# Seconds after which one piece of the decode thread's work means that it is stuck: a batch takes a
# fraction of a second, and the database has less time than this to answer.
STALLED_S = 5.0

log = structlog.get_logger()


# Seconds after which it will not come back, and a new process is better.
STUCK_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """An identifier that waits for its explanation."""

    generation: int | None
    codes: tuple[int, ...]
    caption: "Future[str | None]" = field(default_factory=Future)


def not_served(generation: int | None) -> UsageError:
    """The error of a generation that is not in memory."""
    return UsageError(f"generation {generation} is not served here; leave it out for the live one")


class QueryServer:
    """Keeps generations in memory and answers queries, from `start` to `close`."""

    def __init__(
        self,
        services: Services,
        name: str,
        metrics: QueryMetrics,
        load: LoadSearcher,
        end: EndProcess = end_process,
    ) -> None:
        """`name` tells this worker from others in what it reports.

        `end` is called when a thread dies without which no query is answered.
        """
        stop = self._stop = threading.Event()
        self._metrics = metrics
        self._line = QueryLine(services.settings.query_backlog)
        metrics.waiting.set_function(self._line.__len__)
        metrics.ready.set_function(lambda: float(not self.problem))
        self._heartbeat = Heartbeat()
        self._closed = threading.Event()
        """Set when nothing takes updates any more."""
        self._updates: queue.SimpleQueue[EngineUpdate] = queue.SimpleQueue()
        self._errands: queue.Queue[Errand] = queue.Queue(_ERRANDS)
        self._residents = ResidentGenerations(services, load, self._send, stop, metrics, end)
        self._reporter = Reporter(name, services.connect, services.open_log, stop, metrics)
        self._shadows = ShadowQueue(services.settings.shadow_share, metrics, self._reporter.submit)
        self._served = ServedGenerations(
            metrics, self._shadows, self._reporter.submit, self._set_leading
        )
        self._threads = [
            VitalThread("decode", self._decode, end),
            VitalThread("residents", self._residents.run, end),
            VitalThread("report", self._reporter.run, end),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; queries that wait are refused."""
        self._stop.set()
        self._line.wake()
        for thread in self._threads:
            thread.join(_JOIN_S)
        self._refuse_waiting()
        # A decode thread that is stuck may still use the engines: their memory goes with the
        # process.
        if not self._threads[0].is_alive():
            self._close_engines()

    @property
    def alive(self) -> bool:
        """Whether all threads run and none is stuck for good."""
        running = all(thread.is_alive() for thread in self._threads)
        return running and not self.is_stuck

    @property
    def is_stuck(self) -> bool:
        """Whether the decode thread is so long at one piece of work that it will not end it."""
        return self._heartbeat.busy_s > STUCK_S

    @property
    def problem(self) -> str:
        """Why this worker is not ready; empty when it is."""
        # Read by HTTP's thread without a lock: the decode thread replaces `live` in one step.
        for thread in self._threads:
            # Without an identity it was not started yet.
            if thread.ident is not None and not thread.is_alive():
                return f"the thread {thread.name} of the query worker ended; restart the worker"
        if self._served.live is None:
            return self._residents.problem or "the query worker is starting; try again"
        busy_s = self._heartbeat.busy_s
        if busy_s > STALLED_S:
            return f"the query worker has been at one batch for {busy_s:.0f} seconds; try again"
        return ""

    @property
    def problem_is_public(self) -> bool:
        """Whether the problem holds nothing of this installation, such as paths and addresses."""
        return self._served.live is not None or self._residents.problem_is_public

    @property
    def is_full(self) -> bool:
        """Whether as many queries wait as can be answered in time."""
        return self._line.is_full

    @property
    def most_under_way(self) -> int:
        """How many queries may be on their way from request to answer."""
        # In line, being decoded, and on their way to the line or back.
        return self._line.limit + 2 * _BATCH

    def submit(self, query: PendingQuery) -> None:
        """Put a query in line.

        `RetryLaterError` while no generation can answer, `OverloadedError` when too many wait.
        """
        problem = self.problem
        if problem:
            raise RetryLaterError(problem)
        self._line.join(query)

    def withdraw(self, query: PendingQuery) -> None:
        """Take back a query whose client gave up."""
        self._line.leave(query)

    def prepare_pictures(self) -> None:
        """Make the live generation ready for pictures; may take seconds, for the first one."""
        live = self._served.live
        if live is not None:
            live.engine.prepare_pictures()

    def explain(self, generation: int | None, codes: Sequence[int]) -> "Future[str | None]":
        """What the codes stand for, between two batches; `OverloadedError` when too many wait."""
        problem = self.problem
        if problem:
            raise RetryLaterError(problem)
        errand = Errand(generation, tuple(codes))
        try:
            self._errands.put_nowait(errand)
        except queue.Full:
            raise OverloadedError("too many explanations wait; try again in a second") from None
        self._line.wake()
        return errand.caption

    def report_served(self, query: PendingQuery, answer: AnsweredQuery, took_ms: float) -> None:
        """Report an answered query on `sigma.queries.served`, without making it wait.

        A picture has no text that an event could tell, or somebody ask again.
        """
        self._metrics.queries.inc()
        self._metrics.latency.observe(took_ms / 1000)
        if query.picture is not None:
            return
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
        self._line.wake()
        # Loaded while the worker stops: the decode thread may have ended without looking again.
        if self._closed.is_set():
            self._close_untaken()

    def _close_engines(self) -> None:
        self._closed.set()
        self._served.close()
        self._close_untaken()

    def _close_untaken(self) -> None:
        """Close the searchers that the decode thread did not get to."""
        with suppress(queue.Empty):
            while True:
                update = self._updates.get_nowait()
                if isinstance(update, GenerationLoaded):
                    update.searcher.close()

    # The decode thread, from here on.

    def _decode(self) -> None:
        while not self._stop.is_set():
            queries = self._next_batch()
            with self._heartbeat.busy():
                self._served.take_waiting(self._updates, UPDATES_S)
                self._answer(queries)
                self._explain_next()
        self._refuse_waiting()

    def _next_batch(self) -> list[PendingQuery]:
        """Wait for queries or updates; returns the next batch of queries, perhaps an empty one.

        Meanwhile comparisons go on.
        """
        while self._shadows.waiting:
            queries = self._line.take(_BATCH, wait=False)
            if queries or not self._updates.empty() or self._stop.is_set():
                return queries
            with self._heartbeat.busy():
                self._shadows.step()
        # Updates that are left over have woken the line before.
        return self._line.take(_BATCH, wait=self._updates.empty())

    def _answer(self, queries: Sequence[PendingQuery]) -> None:
        claimed = [query for query in queries if query.claim()]
        if not claimed:
            return
        started_s = time.monotonic()
        grouped = group_queries(claimed, self._served.live_number, self._served.numbers)
        for query in grouped.unserved:
            query.fail(not_served(query.generation))
        for group in grouped.groups:
            self._answer_group(self._served.get(group.generation), group)
        if grouped.groups:
            self._line.record_pace(len(claimed), time.monotonic() - started_s)

    def _answer_group(self, searcher: Searcher[QueryEngine], group: QueryGroup) -> None:
        texts = [query.text for query in group.queries]
        pictures = group.pictures
        eager_before = searcher.engine.eager_searches
        try:
            if pictures:
                answers = searcher.search_pictures(pictures, group.count, group.depth, group.wanted)
            else:
                answers = searcher.search(
                    texts, group.count, group.mode, group.depth, group.wanted, group.least
                )
        except UsageError as error:
            # Of one query as a rule: a picture that this generation cannot read.
            self._fail_or_split(searcher, group, error)
            return
        except Exception as error:
            # One bad batch must not end the worker: its queries fail, the next ones do not.
            log.exception("queries failed", count=len(texts))
            self._fail_or_split(searcher, group, error)
            return
        self._metrics.batch.observe(len(texts))
        self._metrics.count_eager(eager_before, searcher.engine.eager_searches)
        is_plain = group.mode == "fused" and group.wanted is None and not pictures
        compared = is_plain and searcher is self._served.live
        for query, answer in zip(group.queries, answers, strict=True):
            self._metrics.candidates.observe(answer.candidates)
            # Whatever is asked, the best of the images are some: a damaged model shows here.
            narrowed = group.wanted is not None or group.least is not None
            if not answer.hits and searcher.engine.images and not narrowed:
                self._metrics.empty.inc()
            query.resolve(answer.first(query.count))
            if compared:
                candidates = self._served.select(self._residents.shadows)
                self._shadows.offer(query.text, searcher, candidates)

    def _fail_or_split(
        self, searcher: Searcher[QueryEngine], group: QueryGroup, error: Exception
    ) -> None:
        """Answer the queries of a failed group one by one, unless the error concerns them all."""
        if len(group.queries) == 1 or isinstance(error, TRANSIENT_ERRORS):
            self._fail(group, error)
            return
        for query in group.queries:
            self._answer_group(searcher, replace(group, queries=[query]))

    def _fail(self, group: QueryGroup, error: Exception) -> None:
        if not isinstance(error, UsageError):
            self._metrics.failures.inc(len(group.queries))
        if not isinstance(error, SigmaError):
            error = RetryLaterError("the query failed; try again")
        for query in group.queries:
            query.fail(error)

    def _explain_next(self) -> None:
        """Explain one identifier; queries that came meanwhile go before the next one."""
        try:
            errand = self._errands.get_nowait()
        except queue.Empty:
            return
        number = self._served.live_number if errand.generation is None else errand.generation
        if not self._errands.empty():
            self._line.wake()
        if not errand.caption.set_running_or_notify_cancel():
            return
        if number is None or number not in self._served.numbers:
            errand.caption.set_exception(not_served(errand.generation))
            return
        try:
            errand.caption.set_result(self._served.get(number).engine.explain(errand.codes))
        except Exception:
            log.exception("explanation failed", codes=errand.codes)
            errand.caption.set_exception(RetryLaterError("the explanation failed; try again"))

    def _refuse_waiting(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._errands.get_nowait().caption.cancel()
        for query in self._line.take(MOST_WAITING, wait=False):
            if query.claim():
                query.fail(RetryLaterError("the query worker is stopping; ask another one"))
