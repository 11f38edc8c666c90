"""The event log in Postgres, for the embedded mode. Publishing can be part of the transaction that writes the rows."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import psycopg

from schemas.errors import RetryLaterError, UsageError
from schemas.named_sql import queries
from stream.log.event_log import Batch, Connection, Event, Message, Partition, joining, partition_of
from stream.log.topics import TOPICS, Topic

CHANNEL = "sigma_log"
"""Notified when events were published."""

_CONTENDED_POLL_S = 0.2
"""A partition that another member gives back makes no notification, so look again this often while there is one."""


class PostgresLog:
    """`EventLog` in the tables log_partition and log_event. Publishing is safe from several threads.

    A writer locks the partition's row until it commits. That serialises the writers of a partition, and it is what makes
    offsets appear in order and without gaps: a reader that has seen offset 8 will never find a 7 later.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: Connection | None = None
        self._lock = threading.Lock()
        """Guards `_conn`, which is used when the caller brings no connection."""
        self._partitions: dict[str, int] = {}

    def ensure_topics(self, topics: Sequence[Topic] = TOPICS) -> None:
        """See `EventLog`."""
        with self._lock:
            conn = self._own()
            for topic in topics:
                conn.execute(
                    queries()["ensure_partitions"],
                    {"topic": topic.name, "partitions": topic.partitions},
                )
            self._partitions = {}

    def publish(self, conn: Connection | None, messages: Sequence[Message]) -> None:
        """Appends all messages or none. In the caller's transaction if there is a connection: then call it late and once,
        for it locks partitions, in their order, until the commit."""
        if conn is None:
            with self._lock:
                own = self._own()
                with own.transaction():
                    self._append(own, messages)
        else:
            with joining(conn):
                self._append(conn, messages)

    def scope(self, topic: str) -> str:
        """See `EventLog`. The offsets stand in the same database as the topic."""
        return topic

    def end_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """See `EventLog`."""
        with self._lock:
            found = (
                self._own().execute(queries()["end_offsets"], {"topics": list(topics)}).fetchall()
            )
        return {(topic, partition): offset for topic, partition, offset in found}

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        """See `EventLog`."""
        with self._lock:
            return _read(self._own(), (topic, partition), first, limit)

    def open_consumer(self, group: str, topics: Sequence[str]) -> "PostgresConsumer":
        """See `EventLog`."""
        return PostgresConsumer(_connect(self._url, f"sigma consumer {group}"), group, topics)

    def close(self) -> None:
        """See `EventLog`."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    def _own(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = _connect(self._url, "sigma log")
        return self._conn

    def _append(self, conn: Connection, messages: Sequence[Message]) -> None:
        groups: dict[Partition, list[Message]] = defaultdict(list)
        for message in messages:
            count = self._partition_count(conn, message.topic)
            groups[message.topic, partition_of(message.key, count)].append(message)
        for (topic, partition), group in sorted(groups.items()):
            place: dict[str, Any] = {"topic": topic, "partition": partition}
            reserved = conn.execute(
                queries()["reserve_offsets"], {**place, "amount": len(group)}
            ).fetchone()
            columns = {
                "first": reserved[0] if reserved else 0,
                "keys": [m.key for m in group],
                "values": [m.value for m in group],
                "headers": [json.dumps(dict(m.headers)) for m in group],
            }
            conn.execute(queries()["insert_events"], {**place, **columns})
        if groups:
            conn.execute(queries()["notify_log"])

    def _partition_count(self, conn: Connection, topic: str) -> int:
        if topic not in self._partitions:
            self._partitions = dict(conn.execute(queries()["partition_counts"]).fetchall())
        if topic not in self._partitions:
            raise UsageError(
                f"there is no topic {topic}, known are {', '.join(self._partitions) or 'none'}; create them with: sigma init"
            )
        return self._partitions[topic]


class PostgresConsumer:
    """One member of a group, on a connection of its own.

    From one poll to the next it holds a session lock on each partition that it returned events of, so members share the
    partitions without a coordinator, and one that is killed loses its locks with its connection. The locks only keep work
    from being done twice; what makes it count once is the compare-and-set of the offsets.
    """

    def __init__(self, conn: Connection, group: str, topics: Sequence[str]) -> None:
        self._conn = conn
        self._group = group
        self._topics = list(topics)
        self._held: list[Partition] = []
        conn.execute(f"LISTEN {CHANNEL}")

    def poll(self, *, max_events: int = 100, timeout_s: float = 1.0) -> Batch:
        """See `Consumer`. Begins where the group has committed; polling again without a commit returns the same events."""
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                self._release()
                batch, contended = self._take(max_events)
                left = deadline - time.monotonic()
                if batch.events or left <= 0:
                    return batch
                # LISTEN came before the look, so an event published in between is already waiting here.
                for _ in self._conn.notifies(
                    timeout=min(left, _CONTENDED_POLL_S) if contended else left, stop_after=1
                ):
                    pass
        except psycopg.OperationalError as error:
            raise RetryLaterError(
                f"the event log went away ({str(error).strip()[:300]}); open a new consumer"
            ) from error

    def heartbeat(self) -> None:
        """See `Consumer`. The session's locks are membership enough."""

    def close(self) -> None:
        """See `Consumer`."""
        self._conn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, max_events: int) -> tuple[Batch, bool]:
        events: list[Event] = []
        positions: dict[Partition, tuple[int, int]] = {}
        contended = False
        for place in self._pending():
            if len(events) >= max_events:
                break
            if not self._hold(place):
                contended = True
                continue
            first = self._position(place)
            found = _read(self._conn, place, first, max_events - len(events))
            if found:
                events += found
                positions[place] = (first, found[-1].offset + 1)
        return Batch(events=tuple(events), positions=positions), contended

    def _pending(self) -> list[Partition]:
        found = self._conn.execute(
            queries()["pending_partitions"], {"group": self._group, "topics": self._topics}
        )
        return [(topic, partition) for topic, partition in found]

    def _position(self, place: Partition) -> int:
        # Read after the lock was taken: before it, another member may still have been committing.
        found = self._conn.execute(queries()["committed_offset"], self._named(place)).fetchone()
        return int(found[0]) if found else 0

    def _hold(self, place: Partition) -> bool:
        found = self._conn.execute(queries()["try_lock_partition"], self._named(place)).fetchone()
        if found and found[0]:
            self._held.append(place)
            return True
        return False

    def _release(self) -> None:
        while self._held:
            self._conn.execute(queries()["unlock_partition"], self._named(self._held.pop()))

    def _named(self, place: Partition) -> dict[str, Any]:
        return {"group": self._group, "topic": place[0], "partition": place[1]}


def _read(conn: Connection, place: Partition, first: int, limit: int) -> list[Event]:
    topic, partition = place
    found = conn.execute(
        queries()["read_events"],
        {"topic": topic, "partition": partition, "first": first, "amount": limit},
    )
    return [
        Event(topic, partition, offset, key, value, headers, published_at)
        for offset, key, value, headers, published_at in found
    ]


def _connect(url: str, name: str) -> Connection:
    try:
        return psycopg.connect(url, autocommit=True, application_name=name)
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the event log does not answer ({str(error).strip()[:300]}); check that it runs, try again"
        ) from error
