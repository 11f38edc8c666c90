"""Reporting: what a query worker tells the world about its answers, in a thread of its own so that no query waits for it."""

import contextlib
import queue
import threading
from dataclasses import dataclass
from datetime import datetime

from schemas.records import IntArray
from stream.log.event_log import Message
from workers.repository.connection import Connection
from workers.repository.images import record_visibility
from workers.repository.shadow_queries import ShadowQuery, record_shadow_queries
from workers.runtime.metrics import QueryMetrics
from workers.runtime.process import keep_running
from workers.runtime.services import Services

_LOOK_S = 1.0
_WAITING, _TOGETHER = 10_000, 500


@dataclass(frozen=True, slots=True)
class SearchableImages:
    """Image keys that answers may hold from a moment on."""

    keys: IntArray
    since: datetime


Report = SearchableImages | ShadowQuery | Message


class Reporter:
    """Writes reports in the order they come; drops them, counted, when the database is away too long."""

    def __init__(
        self, services: Services, name: str, stop: threading.Event, metrics: QueryMetrics
    ) -> None:
        self._services, self._name, self._stop, self._metrics = services, name, stop, metrics
        self._reports: queue.Queue[Report] = queue.Queue(_WAITING)

    def tell(self, report: Report) -> None:
        """Put a report in line."""
        try:
            self._reports.put_nowait(report)
        except queue.Full:
            self._metrics.dropped.inc()

    def run(self) -> None:
        """Write until stopped."""
        keep_running(self._session, self._stop, "report")

    def _session(self, stop: threading.Event) -> None:
        with (
            contextlib.closing(self._services.open_log()) as events,
            self._services.connect("query report") as conn,
        ):
            while not stop.is_set():
                try:
                    found = [self._reports.get(timeout=_LOOK_S)]
                except queue.Empty:
                    continue
                with contextlib.suppress(queue.Empty):
                    while len(found) < _TOGETHER:
                        found.append(self._reports.get_nowait())
                events.publish(None, [report for report in found if isinstance(report, Message)])
                record_shadow_queries(
                    conn, [report for report in found if isinstance(report, ShadowQuery)]
                )
                for report in found:
                    if isinstance(report, SearchableImages):
                        self._note(conn, report)

    def _note(self, conn: Connection, seen: SearchableImages) -> None:
        for seconds in record_visibility(conn, self._name, seen.keys.tolist(), seen.since):
            self._metrics.freshness.observe(seconds)
