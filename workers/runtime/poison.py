"""Poison: an event that makes the handling of its batch fail is found, set aside, and passed.

One bad event must not hold up those beside it and behind it, whatever is wrong with it.
"""

from collections.abc import Callable

import psycopg
import structlog

from schemas.errors import RejectInputError, SigmaError
from stream.log.event_log import Batch, Event, EventLog
from stream.log.offsets import store_offsets
from workers.repository.connection import Connection, transaction

log = structlog.get_logger()

# What says nothing about an event: a service is away, the disk or the memory is full, a page of a
# table is damaged.
_NOT_THE_EVENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
    OSError,
    MemoryError,
)

HandleBatch = Callable[[Batch], None]
"""Works on a batch and commits it with its offsets, or changes nothing and raises."""


def handle_split(
    batch: Batch,
    handle: HandleBatch,
    set_aside: Callable[[Batch, Exception], None],
    pass_over: HandleBatch,
) -> None:
    """Handle a batch; when that fails, split it until the event at fault is alone.

    That one goes to `set_aside`, which makes it a dead letter. When not even the dead letter can be
    written, `pass_over` commits the offset alone, and the log tells the event's place. Errors of
    services are raised: the same events come again.
    """
    try:
        handle(batch)
    except Exception as error:
        if not is_of_the_event(error) or not batch.events:
            raise
        if len(batch) > 1:
            for half in batch.halves():
                handle_split(half, handle, set_aside, pass_over)
            return
        _set_aside(batch, error, set_aside, pass_over)


def pass_over(conn: Connection, events: EventLog, group: str, batch: Batch) -> None:
    """Commit a batch's offsets and nothing else."""
    with transaction(conn):
        store_offsets(events, conn, group, batch)


def is_of_the_event(error: Exception) -> bool:
    """Tell whether an error may be an event's fault, and not that of a service or of settings."""
    if isinstance(error, SigmaError):
        return isinstance(error, RejectInputError)
    return not isinstance(error, _NOT_THE_EVENT)


def _set_aside(
    batch: Batch,
    error: Exception,
    set_aside: Callable[[Batch, Exception], None],
    pass_over: HandleBatch,
) -> None:
    (event,) = batch.events
    try:
        set_aside(batch, error)
        _tell("event set aside: working on it fails", event, error)
    except Exception as second:
        if not is_of_the_event(second):
            raise
        pass_over(batch)
        _tell("event passed over: not even a dead letter can be made of it", event, second)


def _tell(what: str, event: Event, error: Exception) -> None:
    log.error(
        what,
        topic=event.topic,
        partition=event.partition,
        offset=event.offset,
        reason=str(error)[:300],
        exc_info=error,
    )
