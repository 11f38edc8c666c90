"""The reporter: writes what a query worker did, in a thread of its own so that no query waits.

That is served queries (to the event log), comparisons with a candidate, and which images became
searchable when.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import structlog

from schemas.errors import RetryLaterError
from schemas.records import IntArray
from stream.log.event_log import EventLog, Message
from workers.repository.connection import REPORT_LIMITS, Connection, SessionLimits
from workers.repository.freshness import record_visibility
from workers.repository.shadow_queries import ShadowQuery, record_shadow_queries
from workers.runtime.process import TRANSIENT_ERRORS, keep_running
from workers.runtime.query_metrics import QueryMetrics

# Longest wait for a report, and so for noticing that the worker is to stop.
_POLL_S = 1.0

# Reports that may wait while the database is away. One of 100 results with long ids has about
# 50 kB, so at most 100 MB wait; later ones are dropped and counted.
_CAPACITY = 2_000

# Most reports of one round trip.
_BATCH = 500

# Opens a connection of the given name and limits.
Connect = Callable[[str, SessionLimits], Connection]

R = TypeVar("R")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class SearchableImages:
    """Image keys that answers may contain from a moment on."""

    keys: IntArray
    since: datetime


Report = SearchableImages | ShadowQuery | Message


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """Reports by their kind, each in the order they came."""

    messages: list[Message]
    shadow_queries: list[ShadowQuery]
    searchable: list[SearchableImages]


def batch_of(reports: Sequence[Report]) -> ReportBatch:
    """Sort reports by their kind."""
    batch = ReportBatch([], [], [])
    for report in reports:
        if isinstance(report, Message):
            batch.messages.append(report)
        elif isinstance(report, ShadowQuery):
            batch.shadow_queries.append(report)
        else:
            batch.searchable.append(report)
    return batch


def take_waiting(reports: "queue.Queue[Report]", limit: int, timeout_s: float) -> list[Report]:
    """Take at most `limit` reports; waits for the first one only, and is empty if none comes."""
    try:
        taken = [reports.get(timeout=timeout_s)]
    except queue.Empty:
        return []
    with contextlib.suppress(queue.Empty):
        while len(taken) < limit:
            taken.append(reports.get_nowait())
    return taken


def write_apart(write: Callable[[Sequence[R]], None], reports: Sequence[R]) -> int:
    """Write reports together, or in ever smaller parts when that fails.

    Returns how many cannot be written even alone. Transient errors are raised.
    """
    if not reports:
        return 0
    try:
        write(reports)
        return 0
    except TRANSIENT_ERRORS:
        raise
    except Exception:
        if len(reports) == 1:
            log.exception("report not written", kind=type(reports[0]).__name__)
            return 1
    middle = len(reports) // 2
    return write_apart(write, reports[:middle]) + write_apart(write, reports[middle:])


class Reporter:
    """Writes reports. Those that cannot be written are dropped and counted."""

    def __init__(
        self,
        name: str,
        connect: Connect,
        open_log: Callable[[], EventLog],
        stop: threading.Event,
        metrics: QueryMetrics,
    ) -> None:
        """`name` is the query worker's, under which visibility is recorded."""
        self._name = name
        self._connect = connect
        self._open_log = open_log
        self._stop = stop
        self._metrics = metrics
        self._reports: queue.Queue[Report] = queue.Queue(_CAPACITY)

    def submit(self, report: Report) -> None:
        """Put a report in line. Never blocks."""
        try:
            self._reports.put_nowait(report)
        except queue.Full:
            self._metrics.dropped.inc()

    def run(self) -> None:
        """Write until stopped."""
        keep_running(self._session, self._stop, "report")

    def _session(self, stop: threading.Event) -> None:
        try:
            self._report(stop)
        except TRANSIENT_ERRORS:
            raise
        except Exception as error:
            # Answers do not depend on reports: this thread goes on trying, whatever is wrong.
            log.exception("reports not written")
            raise RetryLaterError(f"reports cannot be written ({error}); trying again") from error

    def _report(self, stop: threading.Event) -> None:
        with (
            contextlib.closing(self._open_log()) as events,
            self._connect("query report", REPORT_LIMITS) as conn,
        ):
            while not stop.is_set():
                reports = take_waiting(self._reports, _BATCH, _POLL_S)
                # Reports that could not be written are lost: they are measurements, and to retry
                # them would hold up newer ones.
                if reports:
                    self._write(conn, events, reports)

    def _write(self, conn: Connection, events: EventLog, reports: Sequence[Report]) -> None:
        batch = batch_of(reports)
        dropped = len(reports)
        try:
            refused = write_apart(lambda part: events.publish(None, part), batch.messages)
            refused += write_apart(
                lambda part: record_shadow_queries(conn, part), batch.shadow_queries
            )
            refused += write_apart(lambda part: self._record(conn, part), batch.searchable)
            dropped = refused
        finally:
            self._metrics.dropped.inc(dropped)

    def _record(self, conn: Connection, searchable: Sequence[SearchableImages]) -> None:
        for images in searchable:
            delays_s = record_visibility(conn, self._name, images.keys.tolist(), images.since)
            for delay_s in delays_s:
                self._metrics.freshness.observe(delay_s)
