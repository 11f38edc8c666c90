"""Waiting events: what was published and not yet worked on when a backup was made.

In the same event log the offsets in the database find them again. Another log does not have them:
there they are published anew, which is harmless for those that come twice.
"""

import base64
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path

from schemas.errors import RejectInputError
from schemas.events import ACCEPTED, DELETED, ImageAccepted, decode
from schemas.named_sql import queries
from schemas.records import JsonObject
from stream.log.event_log import Event, EventLog, Message, Partition
from stream.log.offsets import committed
from stream.log.outbox import add_to_outbox
from stream.log.topics import TOPICS
from workers import index, intake
from workers.repository.connection import Connection, fetch_column

# Topics by the group that reads them.
_READ_BY: Mapping[str, Sequence[str]] = {
    intake.GROUP: intake.TOPICS,
    index.GROUP: index.TOPICS,
}

# Events read of one partition at a time. Each may have a megabyte.
_READ_EVENTS = 50

# Events published in one statement.
_CHUNK_EVENTS = 100


def log_scopes(log: EventLog) -> dict[str, str]:
    """Under which name the offsets of each topic that workers read are stored."""
    topics = [topic for topics in _READ_BY.values() for topic in topics]
    return {topic: log.offset_scope(topic) for topic in topics}


def waiting_events(log: EventLog, conn: Connection) -> Iterator[Event]:
    """Events beyond the offsets that `conn` sees, up to the log's present end, oldest first."""
    streams = []
    for group, topics in _READ_BY.items():
        done = committed(log, conn, group, topics)
        for place, end in log.end_offsets(topics).items():
            streams.append(_events_between(log, place, done.get(place, 0), end))
    return heapq.merge(*streams, key=_published_at)


def accepted_picture(topic: str, value: bytes) -> str | None:
    """The address in the image store that an event names, if it is about an accepted image."""
    if topic != ACCEPTED:
        return None
    try:
        record = decode(topic, value)
    except RejectInputError:
        # The index worker will say what is wrong with it.
        return None
    return record.normalized_uri if isinstance(record, ImageAccepted) else None


def outbox_pictures(conn: Connection) -> Iterator[str]:
    """The same of events that wait to be forwarded."""
    for value in fetch_column(conn, "outbox_values", topic=ACCEPTED):
        picture = accepted_picture(ACCEPTED, value)
        if picture is not None:
            yield picture


def event_line(event: Event) -> bytes:
    """A line of the file of waiting events."""
    document: JsonObject = {
        "topic": event.topic,
        "key": event.key,
        "value": base64.b64encode(event.value).decode(),
        "headers": dict(event.headers),
        "published_at": event.published_at.isoformat(),
    }
    return json.dumps(document).encode() + b"\n"


def carry_over(conn: Connection, log: EventLog, unread: Path, *, with_kafka: bool) -> int:
    """Publish the waiting events in another log than theirs, in the caller's transaction.

    Returns how many they are. With Kafka they go through the outbox, which a worker forwards.
    """
    if not with_kafka:
        _create_partitions(conn)
    carried = 0
    messages = _messages(unread)
    # A deletion stays behind what came before it, and before what came after.
    for _, run in groupby(messages, key=lambda message: message.topic == DELETED):
        for chunk in _chunks(run):
            if with_kafka:
                add_to_outbox(conn, chunk)
            else:
                log.publish(conn, chunk)
            carried += len(chunk)
    return carried if with_kafka else carried + _empty_outbox(conn, log)


def _empty_outbox(conn: Connection, log: EventLog) -> int:
    """Publish in the embedded log what waited for Kafka, because nothing forwards it there."""
    moved = 0
    while True:
        ids, messages = [], []
        for number, topic, key, value, headers in conn.execute(
            queries()["oldest_in_outbox"], {"amount": _CHUNK_EVENTS}
        ):
            ids.append(number)
            messages.append(Message(topic, key, value, headers))
        if not ids:
            return moved
        log.publish(conn, messages)
        conn.execute(queries()["delete_from_outbox"], {"ids": ids})
        moved += len(ids)


def _create_partitions(conn: Connection) -> None:
    for topic in TOPICS:
        conn.execute(
            queries()["ensure_partitions"], {"topic": topic.name, "partitions": topic.partitions}
        )


def _messages(unread: Path) -> Iterator[Message]:
    with unread.open("rb") as lines:
        for line in lines:
            document = json.loads(line)
            value = base64.b64decode(document["value"])
            yield Message(document["topic"], document["key"], value, document["headers"])


def _chunks(messages: Iterator[Message]) -> Iterator[list[Message]]:
    chunk = []
    for message in messages:
        chunk.append(message)
        if len(chunk) == _CHUNK_EVENTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _events_between(log: EventLog, place: Partition, first: int, end: int) -> Iterator[Event]:
    while first < end:
        events = log.read(*place, first=first, limit=_READ_EVENTS)
        for event in events:
            if event.offset < end:
                yield event
        if not events:
            return
        first = events[-1].offset + 1


def _published_at(event: Event) -> datetime:
    return event.published_at
