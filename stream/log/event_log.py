"""The event log as workers see it: publish, poll, and the positions to commit. Postgres implements it, and Kafka."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

import psycopg
from psycopg.pq import TransactionStatus

from schemas.events import EventRecord, encode, headers
from stream.log.topics import TOPICS, Topic

Connection = psycopg.Connection[tuple[Any, ...]]
Partition = tuple[str, int]
"""(topic, partition)"""


@dataclass(frozen=True, slots=True)
class Message:
    """What is published. The key decides the partition."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """What is polled: a message at its place in the log."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    published_at: datetime

    @property
    def place(self) -> Partition:
        """Topic and partition."""
        return self.topic, self.partition


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one poll, and for each partition the offsets [from, to) that they cover.

    The worker commits `positions` with its own rows (`stream.offsets.store_offsets`); without that, they are polled again.
    """

    events: tuple[Event, ...] = ()
    positions: Mapping[Partition, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.events)


class Consumer(Protocol):
    """One member of a consumer group. Not for several threads."""

    def poll(self, *, max_events: int = 100, timeout_s: float = 1.0) -> Batch:
        """Waits for events of partitions that no other member works on. Empty when the time is over."""

    def heartbeat(self) -> None:
        """Stays a member while a batch takes long, without reading on. Call it every few seconds."""

    def close(self) -> None:
        """Gives the partitions back at once."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class EventLog(Protocol):
    """Topics of events in partitions, each in one order, kept after they were read."""

    def ensure_topics(self, topics: Sequence[Topic] = TOPICS) -> None:
        """Creates missing topics; those that exist keep their partition count."""

    def publish(self, conn: Connection | None, messages: Sequence[Message]) -> None:
        """Appends all messages. With a connection: if its transaction commits, and only then."""

    def scope(self, topic: str) -> str:
        """The name under which a topic's offsets are stored: a topic of the same name in another log is another topic."""

    def end_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """The offset that the next event of each partition will get."""

    def open_consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A new member of a group. A new group starts at the oldest event."""

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        """Events of one partition from an offset on, without a group."""

    def close(self) -> None:
        """Closes the log's own connections."""


@contextmanager
def joining(conn: Connection) -> Iterator[None]:
    """The caller's transaction if there is one, else one of its own. A savepoint would cost two round trips, and a caller whose
    publishing failed undoes everything anyway."""
    if conn.info.transaction_status == TransactionStatus.INTRANS:
        yield
        return
    with conn.transaction():
        yield


def message(
    event: EventRecord,
    key: str,
    *,
    cause: Event | None = None,
    extra_headers: Mapping[str, str] | None = None,
) -> Message:
    """An event ready to publish, with its CloudEvents headers; it continues the trace of the event that caused it."""
    made = headers(event, key, cause.headers if cause else None)
    return Message(
        topic=event.TOPIC, key=key, value=encode(event), headers=made | dict(extra_headers or {})
    )


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key: the same on every machine and in every process, which `hash` is not."""
    return zlib.crc32(key.encode("utf-8")) % partitions
