"""The intake worker: arrived → accepted or rejected, and deletions. Needs no model.

With Kafka the faust app brings the events, otherwise a poll loop does; from there on both are the
same. Offsets commit in the same transaction as what the events led to.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog

from schemas.errors import RejectInputError
from schemas.events import (
    ImageAccepted,
    ImageArrived,
    ImageDeleted,
    ImageRejected,
    trace_of,
)
from stream.images.decode_pool import DecodePool
from stream.images.store import ImageStore
from stream.log.dead_letters import dead_letter, rejection_of_event, rejection_of_failure
from stream.log.event_log import Batch, Event, EventLog, Message, message, record_of
from stream.log.offsets import lag, store_offsets
from stream.validation import STAGE, accept
from workers.faust_handler import GROUP as GROUP
from workers.faust_handler import MOST_EVENTS, FaustHandler
from workers.faust_handler import TOPICS as TOPICS
from workers.repository.connection import MEMBER_LIMITS, Connection, transaction
from workers.repository.deletions import DeletedVersions, DeletionRequest, deleted_versions
from workers.repository.generations import largest_encoder
from workers.repository.image_deletion import delete_images
from workers.repository.image_rows import LateArrival
from workers.repository.refused_versions import RefusedVersion, note_refused
from workers.repository.rejections import reject_image
from workers.runtime.membership import work_as_member
from workers.runtime.metrics import IntakeMetrics
from workers.runtime.pictures import picture_px
from workers.runtime.poison import handle_split, pass_over
from workers.runtime.process import announce_ready, keep_running
from workers.runtime.services import Services

# Longest wait for events, and so for noticing that the worker is to stop.
_POLL_S = 1.0

# Decoding processes, and threads that wait for them and for sources.
_PROCESSES = 2

# Seconds between measurements of the group's lag, which ask the whole log.
_LAG_EVERY_S = 5.0

log = structlog.get_logger()

# What an event holds, or why it cannot be read.
InputRecord = ImageArrived | ImageDeleted | ImageRejected

# A late arrival was deleted before it came, so its bytes are not even fetched.
Verdict = ImageAccepted | ImageRejected | ImageDeleted | LateArrival


@dataclass(frozen=True, slots=True)
class JudgedEvent:
    """An event and what intake made of it."""

    event: Event
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Intake:
    """Judges events and commits the verdicts. Reads images with `read_source`, a URI's bytes."""

    store: ImageStore
    read_source: Callable[[str], bytes]
    decoder: DecodePool
    threads: ThreadPoolExecutor
    metrics: IntakeMetrics
    asked_px: int | None = None
    """`SIGMA_PICTURE_PX`"""

    def process(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        """Judge a batch and commit it with the group's offsets, in one transaction.

        An event that makes this fail is a dead letter of its own.
        """
        handle_split(
            batch,
            partial(self._process, conn, events),
            partial(self._set_aside, conn, events),
            partial(self._pass_over, conn, events),
        )

    def _process(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        records = [read_record(event) for event in batch.events]
        deleted = deleted_versions(conn, arrived_ids(records))
        # Asked for each batch: a training in another process may have begun with a larger encoder.
        longest_side = picture_px(self.asked_px, largest_encoder(conn))

        def judge(event: Event, record: InputRecord) -> JudgedEvent:
            return JudgedEvent(event, self.judge(event, record, deleted, longest_side))

        judged = list(self.threads.map(judge, batch.events, records))
        self._commit(conn, events, batch, judged)

    def _set_aside(
        self, conn: Connection, events: EventLog, batch: Batch, error: Exception
    ) -> None:
        judged = []
        for event in batch.events:
            judged.append(JudgedEvent(event, rejection_of_failure(event, error, stage=STAGE)))
        self._commit(conn, events, batch, judged)

    def _pass_over(self, conn: Connection, events: EventLog, batch: Batch) -> None:
        pass_over(conn, events, GROUP, batch)
        self.metrics.count_passed_over()

    def _commit(
        self, conn: Connection, events: EventLog, batch: Batch, judged: Sequence[JudgedEvent]
    ) -> None:
        with transaction(conn):
            commit(conn, events, judged)
            # Last, so that the row locks of the offsets are held briefly.
            store_offsets(events, conn, GROUP, batch)
        # Counted after the commit: a batch that is rolled back comes again.
        self.metrics.batch.observe(len(batch))
        for judgement in judged:
            self.metrics.count_verdict(judgement.verdict)

    def judge(
        self,
        event: Event,
        record: InputRecord,
        deleted: Mapping[str, DeletedVersions],
        longest_side: int,
    ) -> Verdict:
        """Decide what one event comes to. Reads and stores bytes, touches no table.

        Pictures are stored with at most `longest_side` pixels a side.
        """
        if not isinstance(record, ImageArrived):
            return record
        gone = deleted.get(record.image_id)
        if gone is not None and gone.covers(record.version, event.published_at):
            return LateArrival(
                record.image_id, record.version, record.arrived_at, event.published_at
            )
        return accept(
            record,
            self.store,
            self.decoder,
            self.read_source,
            event.published_at,
            longest_side,
        )


def run(services: Services, stop: threading.Event, metrics: IntakeMetrics) -> None:
    """Consume until stopped."""
    with (
        DecodePool(services.limits, processes=_PROCESSES) as decoder,
        ThreadPoolExecutor(_PROCESSES) as threads,
    ):
        intake = Intake(
            services.store,
            services.sources.read,
            decoder,
            threads,
            metrics,
            services.settings.picture_px,
        )
        if services.settings.kafka is None:
            _run_polling(services, intake, stop)
        else:
            _run_faust(services, intake, stop)


def read_record(event: Event) -> InputRecord:
    """Parse an event of one of the topics; a rejection when it cannot be parsed."""
    try:
        record = record_of(event)
    except RejectInputError as error:
        return rejection_of_event(event, error, stage=STAGE)
    if isinstance(record, ImageArrived | ImageDeleted):
        return record
    raise AssertionError(f"topic must be one of {', '.join(TOPICS)}, got {event.topic}")


def arrived_ids(records: Sequence[InputRecord]) -> list[str]:
    """The ids of the arrivals among the records."""
    return [record.image_id for record in records if isinstance(record, ImageArrived)]


def outgoing_messages(judged: Sequence[JudgedEvent]) -> list[Message]:
    """Build the events for the next worker and the dead letters, in the order of the verdicts.

    Deletions need none: the database tells whoever follows it.
    """
    messages: list[Message] = []
    for judgement in judged:
        event, verdict = judgement.event, judgement.verdict
        if isinstance(verdict, ImageAccepted):
            messages.append(message(verdict, verdict.image_id, cause=event))
        elif isinstance(verdict, ImageRejected):
            messages.append(dead_letter(event, verdict))
    return messages


def commit(conn: Connection, events: EventLog, judged: Sequence[JudgedEvent]) -> None:
    """Write deletions and rejections and publish messages, in the caller's transaction."""
    deletions: list[DeletionRequest] = []
    late: list[LateArrival] = []
    refused: list[RefusedVersion] = []
    for judgement in judged:
        verdict = judgement.verdict
        published_at = judgement.event.published_at
        if isinstance(verdict, ImageDeleted):
            deletions.append(DeletionRequest(verdict.image_id, verdict.version, published_at))
        elif isinstance(verdict, LateArrival):
            late.append(verdict)
        elif isinstance(verdict, ImageRejected):
            refused.append(RefusedVersion(verdict.image_id, verdict.version, published_at))
    if deletions or late:
        delete_images(conn, deletions, late)
    note_refused(conn, refused)
    for judgement in judged:
        if isinstance(judgement.verdict, ImageRejected):
            reject_image(conn, judgement.verdict)
            _log_rejection(judgement.event, judgement.verdict)
    messages = outgoing_messages(judged)
    if messages:
        events.publish(conn, messages)


def _log_rejection(event: Event, rejected: ImageRejected) -> None:
    log.info(
        "image rejected",
        image_id=rejected.image_id,
        code=rejected.code,
        reason=rejected.reason,
        trace_id=trace_of(event.headers),
    )


def _run_polling(services: Services, intake: Intake, stop: threading.Event) -> None:
    def session(stop: threading.Event) -> None:
        events = services.open_log()
        events.ensure_topics()
        with services.connect(GROUP, MEMBER_LIMITS) as conn:
            _poll(intake, events, conn, stop)
        events.close()

    keep_running(session, stop, GROUP)


def _poll(intake: Intake, events: EventLog, conn: Connection, stop: threading.Event) -> None:
    with (
        # Slow sources may take longer than the leases of the partitions last.
        ThreadPoolExecutor(1, "intake") as executor,
        events.open_consumer(GROUP, TOPICS) as consumer,
    ):
        measured_at_s = 0.0
        announce_ready()
        while not stop.is_set():
            batch = consumer.poll(max_events=MOST_EVENTS, timeout_s=_POLL_S)
            if batch:
                work_as_member(executor, consumer, partial(intake.process, conn, events, batch))
            if time.monotonic() - measured_at_s > _LAG_EVERY_S:
                measured_at_s = time.monotonic()
                intake.metrics.lag.set(lag(events, conn, GROUP, TOPICS))


def _run_faust(services: Services, intake: Intake, stop: threading.Event) -> None:
    # Imported here: faust is slow to import, and needed with Kafka only.
    from stream.log import faust_app

    kafka = services.settings.kafka
    assert kafka is not None
    handler = FaustHandler(
        intake.process,
        services.open_log(),
        lambda: services.connect(GROUP, MEMBER_LIMITS),
        stop,
        intake.metrics.lag.set,
    )
    app = faust_app.build_app(
        kafka, services.home / "faust", handler, intake.metrics.set_last_minute
    )
    try:
        faust_app.run_app(app, stop, announce_ready)
    finally:
        handler.close()
