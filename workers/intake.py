"""The intake worker: arrived → accepted or rejected, and deletions. Needs no model; offsets commit with what they led to.

With Kafka the faust app brings the events, otherwise a poll loop; from there on both are the same.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from schemas.errors import RejectInputError
from schemas.events import (
    ARRIVED,
    DELETED,
    ImageAccepted,
    ImageArrived,
    ImageDeleted,
    ImageRejected,
    decode,
    trace_of,
)
from stream.images.decode_pool import DecodePool
from stream.log.dead_letters import dead_letter, rejection_of_event
from stream.log.event_log import Batch, Event, EventLog, Message, Partition, message
from stream.log.offsets import committed, contiguous_batch, lag, store_offsets
from stream.validation import STAGE, accept
from workers.repository.connection import Connection, transaction
from workers.repository.images import delete_images, reject_image
from workers.runtime.metrics import IntakeMetrics
from workers.runtime.process import TRANSIENT_ERRORS, announce_ready, keep_running
from workers.runtime.services import Services

GROUP = "intake"
TOPICS = (ARRIVED, DELETED)
_BATCH, _POLL_S, _PROCESSES, _PAUSE_S, _WATCH_S = 32, 1.0, 2, 0.5, 5.0

log = structlog.get_logger()

Verdict = tuple[Event, ImageAccepted | ImageRejected | ImageDeleted]


def run(services: Services, stop: threading.Event, metrics: IntakeMetrics) -> None:
    """Consume until stopped."""
    with (
        DecodePool(services.limits, processes=_PROCESSES) as pool,
        ThreadPoolExecutor(_PROCESSES) as threads,
    ):
        intake = Intake(services, pool, threads, metrics)
        if services.settings.kafka is None:
            keep_running(lambda stop: _session(intake, stop), stop, GROUP)
            return
        from stream.log import faust_app

        events = Delivered(intake, stop)
        folder = services.home / "faust"
        try:
            faust_app.run_app(
                faust_app.build_app(services.settings.kafka, folder, events, metrics.counted),
                stop,
                announce_ready,
            )
        finally:
            events.close()


@dataclass(frozen=True, slots=True)
class Intake:
    """Judges events and writes what they come to."""

    services: Services
    pool: DecodePool
    threads: ThreadPoolExecutor
    metrics: IntakeMetrics

    def process(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        """Judge a batch and commit it with the group's offsets, in one transaction."""
        verdicts = list(self.threads.map(self.judge, batch.events))
        with transaction(conn):
            commit(conn, events, verdicts)
            store_offsets(events, conn, GROUP, batch)
        self.metrics.batch.observe(len(batch))
        for _, verdict in verdicts:
            self.metrics.verdict(verdict)

    def judge(self, event: Event) -> Verdict:
        """What one event comes to. Reads and stores bytes, touches no table."""
        try:
            record = decode(event.topic, event.value)
        except RejectInputError as error:
            return event, rejection_of_event(event, error, stage=STAGE)
        if isinstance(record, ImageArrived):
            return event, accept(
                record,
                self.services.store,
                self.pool,
                self.services.sources.read,
                event.published_at,
            )
        if isinstance(record, ImageDeleted):
            return event, record
        raise AssertionError(f"topic {event.topic} is not one of the intake's")


class Delivered:
    """Takes events that faust brings. They may come again, in gaps, or never: the offsets in Postgres decide."""

    def __init__(self, intake: Intake, stop: threading.Event) -> None:
        self._intake = intake
        self._stop = stop
        self._log = intake.services.open_log()
        self._conn: Connection | None = None
        self._stood: dict[Partition, int] = {}

    def handle(self, events: Sequence[Event]) -> None:
        """Work until the events are committed, by this member or another. Services that are away make it wait, not lose."""
        while not self._stop.is_set():
            try:
                conn = self._connected()
                batch = contiguous_batch(
                    self._log, committed(self._log, conn, GROUP, TOPICS), events
                )
                if not batch:
                    return
                self._intake.process(conn, self._log, batch)
            except TRANSIENT_ERRORS as error:
                log.warning("events wait", worker=GROUP, count=len(events), reason=str(error))
                self._stop.wait(_PAUSE_S)

    def sweep(self) -> None:
        """Work on partitions that stand where they stood at the last sweep although the log goes on."""
        try:
            ends = self._log.end_offsets(TOPICS)
            done = committed(self._log, self._connected(), GROUP, TOPICS)
            self._intake.metrics.lag.set(
                sum(max(0, end - done.get(place, 0)) for place, end in ends.items())
            )
            stuck = [
                place
                for place, end in ends.items()
                if done.get(place, 0) < end and done.get(place, 0) == self._stood.get(place)
            ]
            self._stood = {place: done.get(place, 0) for place in ends}
            for place in stuck:
                self.handle(self._log.read(*place, first=done.get(place, 0), limit=_BATCH))
        except TRANSIENT_ERRORS as error:
            log.warning("no sweep", worker=GROUP, reason=str(error))

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        if self._conn is not None:
            self._conn.close()

    def _connected(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = self._intake.services.connect(GROUP)
        return self._conn


def _session(intake: Intake, stop: threading.Event) -> None:
    events = intake.services.open_log()
    events.ensure_topics()
    with intake.services.connect(GROUP) as conn, events.open_consumer(GROUP, TOPICS) as consumer:
        watched = 0.0
        announce_ready()
        while not stop.is_set():
            batch = consumer.poll(max_events=_BATCH, timeout_s=_POLL_S)
            if batch:
                intake.process(conn, events, batch)
            if time.monotonic() - watched > _WATCH_S:
                watched = time.monotonic()
                intake.metrics.lag.set(lag(events, conn, GROUP, TOPICS))
    events.close()


def commit(conn: Connection, events: EventLog, verdicts: Sequence[Verdict]) -> None:
    """Write what the batch led to, in the caller's transaction: rejections, deletions, and the events for the next worker."""
    deletions = [verdict for _, verdict in verdicts if isinstance(verdict, ImageDeleted)]
    if deletions:
        delete_images(conn, deletions)
    messages: list[Message] = []
    for event, verdict in verdicts:
        if isinstance(verdict, ImageAccepted):
            messages.append(message(verdict, verdict.image_id, cause=event))
        elif isinstance(verdict, ImageRejected):
            reject_image(conn, verdict)
            messages.append(dead_letter(event, verdict))
            log.info(
                "image rejected",
                image_id=verdict.image_id,
                code=verdict.code,
                reason=verdict.reason,
                trace_id=trace_of(event.headers),
            )
    if messages:
        events.publish(conn, messages)
