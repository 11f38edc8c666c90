"""The event log as workers see it: publish, poll, and the offsets to commit.

`stream/log/postgres.py` implements it for the embedded mode, `stream/log/kafka.py` with Kafka.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from psycopg.pq import TransactionStatus

from schemas.errors import RejectInputError
from schemas.events import EventRecord, decode, encode, headers
from stream.lease import Lease
from stream.log.topics import TOPICS, Topic
from stream.session import Connection

# (topic, partition number)
Partition = tuple[str, int]


# Most bytes of an event that is published: what brokers and producers take unless told otherwise is
# 1 MiB with all headers, and an arrival that is just allowed must fit with what intake adds to it.
MAX_MESSAGE_BYTES = 960 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """An event to publish. The key decides the partition."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name) + len(text.encode()) for name, text in self.headers.items())
        return len(self.key.encode()) + len(self.value) + headers


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why offsets from `first` up to an event's own cannot be read; the event stands for them.

    It has the last of these offsets, so that whoever commits it has passed them all.
    """

    first: int
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """An event read from the log: a message with its partition, offset and time."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    published_at: datetime
    unreadable: Unreadable | None = None
    """If it stands for a batch of records that cannot be unpacked."""

    @property
    def topic_partition(self) -> Partition:
        """Topic and partition number."""
        return self.topic, self.partition


@dataclass(frozen=True, slots=True)
class Span:
    """What a log has of one partition from an offset on: all events before the offset `end`.

    Offsets without an event hold none: Kafka's markers of transactions, and what was aborted.
    """

    events: tuple[Event, ...]
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one poll, and for each partition the offsets [begin, end) that they cover.

    It may cover offsets without any event: of transactions that were aborted, and of their markers.
    The worker commits `positions` in the transaction that writes its rows
    (`stream.log.offsets.store_offsets`). Without that commit, the same events are polled again.
    """

    events: tuple[Event, ...] = ()
    positions: Mapping[Partition, tuple[int, int]] = field(default_factory=dict)
    leases: tuple[Lease, ...] = ()
    """Of the partitions, where they are shared by leases: without them the commit is refused."""

    def __len__(self) -> int:
        return len(self.events)

    def __bool__(self) -> bool:
        return bool(self.positions)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Split the events in two, each part with the offsets that it covers, the earlier first.

        Events of a partition stand in its order, so both parts can be committed one by one.
        """
        middle = len(self.events) // 2
        first, second = self.events[:middle], self.events[middle:]
        ends = {event.topic_partition: event.offset + 1 for event in first}
        # Offsets without an event of the first part go to the second, holes at the end included.
        later = {event.topic_partition for event in second}
        begins: dict[Partition, tuple[int, int]] = {}
        rest: dict[Partition, tuple[int, int]] = {}
        for place, (begin, end) in self.positions.items():
            split = begin
            if place in ends:
                split = ends[place] if place in later else end
                begins[place] = (begin, split)
            if split < end:
                rest[place] = (split, end)
        return Batch(first, begins, self.leases), Batch(second, rest, self.leases)


class Consumer(Protocol):
    """One member of a consumer group. Not thread-safe."""

    def poll(self, *, max_events: int = 100, timeout_s: float = 1.0) -> Batch:
        """Wait for events of partitions that no other member has. Empty after the timeout."""

    def heartbeat(self) -> None:
        """Stay a member while a batch takes long, without reading on. Call it every few seconds."""

    def close(self) -> None:
        """Leave the group; other members get the partitions at once."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class EventLog(Protocol):
    """Topics of events in partitions. Each partition has one order; reading removes nothing."""

    def ensure_topics(self, topics: Sequence[Topic] = TOPICS) -> None:
        """Create missing topics. Existing ones keep their number of partitions."""

    def publish(self, conn: Connection | None, messages: Sequence[Message]) -> None:
        """Append all messages. With a connection: if and only if its transaction commits."""

    def offset_scope(self, topic: str) -> str:
        """Return the name under which offsets of a topic are stored.

        Offsets count inside one topic of one log: a topic of the same name in another log, or one
        that was deleted and created again, must not inherit them.
        """

    def end_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """Return the offset that the next event of each partition will get.

        Events of a transaction that is still open, and those behind it, count, though nobody can
        read them yet.
        """

    def open_consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """Join a group as a new member. A new group starts at the oldest event."""

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        """Read events of one partition from offset `first` on, without a group."""

    def read_span(self, topic: str, partition: int, *, first: int, limit: int) -> Span:
        """Read the same, and say how far that came."""

    def close(self) -> None:
        """Close the log's own connections. Consumers are closed by whoever opened them."""


@contextmanager
def join_transaction(conn: Connection) -> Iterator[None]:
    """Run in the caller's transaction if there is one, else in a new one.

    A nested `conn.transaction()` would be a savepoint, which costs two round trips and gains
    nothing: a caller whose publishing failed rolls back everything.
    """
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
    """Make an event ready to publish, with CloudEvents headers.

    It continues the trace of its `cause`, the event whose handling led to it. `RejectInputError`
    when it is larger than a log takes.
    """
    cloud_headers = headers(event, key, cause.headers if cause else None)
    made = Message(
        topic=event.TOPIC,
        key=key,
        value=encode(event),
        headers={**cloud_headers, **(extra_headers or {})},
    )
    if made.size > MAX_MESSAGE_BYTES:
        raise RejectInputError(
            "too-large",
            f"an event {event.NAME} must have at most {MAX_MESSAGE_BYTES:,} bytes, "
            f"got {made.size:,}; send fewer or shorter captions",
        )
    return made


def record_of(event: Event) -> EventRecord:
    """Decode what an event holds.

    `RejectInputError` when it is not what its topic carries, or its batch could not be unpacked.
    """
    if event.unreadable is not None:
        raise RejectInputError("unreadable-batch", event.unreadable.reason)
    return decode(event.topic, event.value)


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key, the same in every process (Python's `hash` is not)."""
    return zlib.crc32(key.encode("utf-8")) % partitions
