"""The intake worker: arrived → accepted or rejected, and deletions. Needs no model; offsets commit with what they led to."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from schemas.errors import RejectInputError
from schemas.events import ARRIVED, DELETED, ImageAccepted, ImageArrived, ImageDeleted, ImageRejected, decode
from stream.dead_letters import dead_letter, rejection
from stream.decoding import DecodePool
from stream.intake import STAGE, accept
from stream.log import Event, EventLog, Message, message
from stream.offsets import store_offsets
from stream.sources import read_source
from workers.repository.connection import Connection, transaction
from workers.repository.images import delete_images, reject_image
from workers.running import keep_running
from workers.services import Services

GROUP = "intake"
TOPICS = (ARRIVED, DELETED)
_BATCH, _POLL_S, _PROCESSES = 32, 1.0, 2

log = structlog.get_logger()

Verdict = tuple[Event, ImageAccepted | ImageRejected | ImageDeleted]


def run(services: Services, stop: threading.Event) -> None:
    """Consume until stopped."""
    with DecodePool(services.limits, processes=_PROCESSES) as pool, ThreadPoolExecutor(_PROCESSES) as threads:
        keep_running(lambda stop: _session(services, pool, threads, stop), stop, GROUP)


def _session(services: Services, pool: DecodePool, threads: ThreadPoolExecutor, stop: threading.Event) -> None:
    events = services.log()
    events.ensure_topics()
    with services.connect(GROUP) as conn, events.consumer(GROUP, TOPICS) as consumer:
        while not stop.is_set():
            batch = consumer.poll(max_events=_BATCH, timeout_s=_POLL_S)
            if batch:
                verdicts = list(threads.map(partial(judge, services=services, pool=pool), batch.events))
                with transaction(conn):
                    commit(conn, events, verdicts)
                    store_offsets(conn, GROUP, batch)
    events.close()


def judge(event: Event, services: Services, pool: DecodePool) -> Verdict:
    """What one event comes to. Reads and stores bytes, touches no table."""
    try:
        record = decode(event.topic, event.value)
    except RejectInputError as error:
        return event, rejection(event, error, stage=STAGE)
    if isinstance(record, ImageArrived):
        source = partial(read_source, cap_bytes=services.settings.max_image_bytes)
        return event, accept(record, services.store(), pool, source, event.published_at)
    if isinstance(record, ImageDeleted):
        return event, record
    raise AssertionError(f"topic {event.topic} is not one of the intake's")


def commit(conn: Connection, events: EventLog, verdicts: Sequence[Verdict]) -> None:
    """Write what the batch led to, in the caller's transaction: rejections, deletions, and the events for the next worker."""
    deletions = [verdict for _, verdict in verdicts if isinstance(verdict, ImageDeleted)]
    if deletions:
        delete_images(conn, deletions)
    messages: list[Message] = []
    for event, verdict in verdicts:
        if isinstance(verdict, ImageAccepted):
            messages.append(message(verdict, verdict.image_id))
        elif isinstance(verdict, ImageRejected):
            reject_image(conn, verdict)
            messages.append(dead_letter(event, verdict))
            log.info("image rejected", image_id=verdict.image_id, code=verdict.code, reason=verdict.reason)
    if messages:
        events.publish(conn, messages)
