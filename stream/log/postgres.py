"""The event log in PostgreSQL, for the embedded mode.

Publishing can be part of the transaction that writes the rows.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import psycopg

from schemas.errors import RetryLaterError, UsageError, brief
from schemas.named_sql import queries
from stream.lease import Lease, give_up, renew, take
from stream.log.event_log import (
    Batch,
    Event,
    Message,
    Partition,
    Span,
    join_transaction,
    partition_of,
)
from stream.log.topics import TOPICS, Topic
from stream.session import NOTICE_VANISHED_CLIENTS, Connection, connection_options

# Notified when a transaction that published events commits; the name is also in log.sql.
CHANNEL = "sigma_log"

# How often to look again while another member has a partition with events.
#
# Giving a partition back sends no notification.
_CONTENDED_POLL_S = 0.2


class PostgresLog:
    """`EventLog` in the tables log_partition and log_event. Publishing is thread-safe.

    A writer locks the partition's row until it commits. That serialises the writers of a
    partition, so offsets become visible in order and without gaps: a reader that has seen
    offset 8 will never find a 7 later. The log's own connection is opened when first needed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        """Guards `_conn`, which is used when the caller brings no connection."""
        self._conn: Connection | None = None
        self._partition_counts: Mapping[str, int] = {}

    def ensure_topics(self, topics: Sequence[Topic] = TOPICS) -> None:
        """See `EventLog`."""
        with self._lock:
            conn = self._open_connection()
            for topic in topics:
                conn.execute(
                    queries()["ensure_partitions"],
                    {"topic": topic.name, "partitions": topic.partitions},
                )
            # Read again when next needed: another process may have created some.
            self._partition_counts = {}

    def publish(self, conn: Connection | None, messages: Sequence[Message]) -> None:
        """Append all messages or none.

        With a connection, in the caller's transaction: then call it late and once, because it
        locks partitions, in ascending order, until the commit.
        """
        if conn is not None:
            with join_transaction(conn):
                self._append(conn, messages)
            return
        with self._lock:
            own = self._open_connection()
            with own.transaction():
                self._append(own, messages)

    def offset_scope(self, topic: str) -> str:
        """See `EventLog`. Offsets are in the same database as the topic, so its name is enough."""
        return topic

    def end_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """See `EventLog`."""
        with self._lock:
            conn = self._open_connection()
            rows = conn.execute(queries()["end_offsets"], {"topics": list(topics)}).fetchall()
        return {(topic, partition): offset for topic, partition, offset in rows}

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        """See `EventLog`."""
        with self._lock:
            return _read(self._open_connection(), (topic, partition), first, limit)

    def read_span(self, topic: str, partition: int, *, first: int, limit: int) -> Span:
        """See `EventLog`. There are no holes, except where old events were removed."""
        events = self.read(topic, partition, first=first, limit=limit)
        return Span(tuple(events), events[-1].offset + 1 if events else first)

    def open_consumer(self, group: str, topics: Sequence[str]) -> "PostgresConsumer":
        """See `EventLog`."""
        return PostgresConsumer.open(self._url, group, topics)

    def close(self) -> None:
        """See `EventLog`."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    def _open_connection(self) -> Connection:
        """Return the log's own connection, opened anew if it is lost. Call it with the lock."""
        if self._conn is None or self._conn.closed:
            self._conn = _connect(self._url, "sigma log")
        return self._conn

    def _append(self, conn: Connection, messages: Sequence[Message]) -> None:
        groups: dict[Partition, list[Message]] = defaultdict(list)
        for message in messages:
            count = self._partition_count(conn, message.topic)
            groups[message.topic, partition_of(message.key, count)].append(message)
        # Ascending, the order in which every writer locks partitions.
        for partition in sorted(groups):
            _append_to_partition(conn, partition, groups[partition])
        if groups:
            conn.execute(queries()["notify_log"])

    def _partition_count(self, conn: Connection, topic: str) -> int:
        # The count of a topic never changes, so it is read once.
        if topic not in self._partition_counts:
            rows = conn.execute(queries()["partition_counts"]).fetchall()
            self._partition_counts = dict(rows)
        if topic not in self._partition_counts:
            known = ", ".join(self._partition_counts) or "none"
            raise UsageError(
                f"there is no topic {topic}, known are {known}; create them with: sigma init"
            )
        return self._partition_counts[topic]


class PostgresConsumer:
    """One member of a group, with its own connection.

    From one poll to the next it has a lease on each partition that it returned events of. So
    members share the partitions without a coordinator. One that is killed loses its leases with
    its connection, and one that hangs by their expiry: what it commits afterwards is refused.
    """

    def __init__(self, conn: Connection, group: str, topics: Sequence[str]) -> None:
        self._conn = conn
        self._group = group
        self._topics = list(topics)
        self._leases: list[Lease] = []

    @classmethod
    def open(cls, url: str, group: str, topics: Sequence[str]) -> Self:
        """Connect and listen for published events. `RetryLaterError` if the database is down."""
        conn = _connect(url, f"sigma consumer {group}")
        conn.execute(f"LISTEN {CHANNEL}")
        return cls(conn, group, topics)

    def poll(self, *, max_events: int = 100, timeout_s: float = 1.0) -> Batch:
        """See `Consumer`.

        Begins where the group has committed; polling again without a commit returns the same
        events.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                # First, so that partitions whose events were committed go to waiting members.
                self._give_up_partitions()
                batch, contended = self._take(max_events)
                remaining_s = deadline - time.monotonic()
                if batch.events or remaining_s <= 0:
                    return batch
                self._wait(min(remaining_s, _CONTENDED_POLL_S) if contended else remaining_s)
        except psycopg.OperationalError as error:
            raise RetryLaterError(
                f"the connection to the event log was lost ({brief(error)}); open a new consumer"
            ) from error

    def heartbeat(self) -> None:
        """See `Consumer`. A lease that was lost shows when the batch is committed."""
        try:
            renew(self._conn, self._leases)
        except psycopg.OperationalError as error:
            raise RetryLaterError(
                f"the connection to the event log was lost ({brief(error)}); open a new consumer"
            ) from error

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
        """Take and read pending partitions; also whether another member has one of them."""
        events: list[Event] = []
        positions: dict[Partition, tuple[int, int]] = {}
        contended = False
        for partition in self._pending_partitions():
            if len(events) >= max_events:
                break
            lease = take(self._conn, lease_name(self._group, partition))
            if lease is None:
                contended = True
                continue
            self._leases.append(lease)
            # Read after the lease was taken: before, another member may still be committing.
            first = self._committed_offset(partition)
            partition_events = _read(self._conn, partition, first, max_events - len(events))
            if partition_events:
                events += partition_events
                positions[partition] = (first, partition_events[-1].offset + 1)
        batch = Batch(events=tuple(events), positions=positions, leases=tuple(self._leases))
        return batch, contended

    def _wait(self, timeout_s: float) -> None:
        # LISTEN was executed before the look, so events published since then end this at once.
        for _ in self._conn.notifies(timeout=timeout_s, stop_after=1):
            pass

    def _pending_partitions(self) -> list[Partition]:
        rows = self._conn.execute(
            queries()["pending_partitions"], {"group": self._group, "topics": self._topics}
        )
        return [(topic, partition) for topic, partition in rows]

    def _committed_offset(self, partition: Partition) -> int:
        row = self._conn.execute(
            queries()["committed_offset"], self._parameters(partition)
        ).fetchone()
        return int(row[0]) if row else 0

    def _give_up_partitions(self) -> None:
        give_up(self._conn, self._leases)
        self._leases = []

    def _parameters(self, partition: Partition) -> dict[str, str | int]:
        topic, number = partition
        return {"group": self._group, "topic": topic, "partition": number}


def lease_name(group: str, partition: Partition) -> str:
    """The name of the lease by which a member of a group has a partition."""
    topic, number = partition
    return f"partition {group} {topic} {number}"


def _append_to_partition(
    conn: Connection, partition: Partition, messages: Sequence[Message]
) -> None:
    topic, number = partition
    reserved = conn.execute(
        queries()["reserve_offsets"],
        {"topic": topic, "partition": number, "amount": len(messages)},
    ).fetchone()
    conn.execute(
        queries()["insert_events"],
        {
            "topic": topic,
            "partition": number,
            "first": reserved[0] if reserved else 0,
            "keys": [message.key for message in messages],
            "values": [message.value for message in messages],
            "headers": [json.dumps(dict(message.headers)) for message in messages],
        },
    )


def _read(conn: Connection, partition: Partition, first: int, limit: int) -> list[Event]:
    topic, number = partition
    rows = conn.execute(
        queries()["read_events"],
        {"topic": topic, "partition": number, "first": first, "amount": limit},
    )
    return [Event(topic, number, *columns) for columns in rows]


def _connect(url: str, name: str) -> Connection:
    """Open an autocommit connection; `name` shows in pg_stat_activity."""
    try:
        conn = psycopg.connect(
            url, autocommit=True, application_name=name, **connection_options(url)
        )
        conn.execute(NOTICE_VANISHED_CLIENTS.encode())
        # In another zone the server's first and last days lie outside Python's years 1 to 9999.
        conn.execute("SET TIME ZONE 'UTC'")
        return conn
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the event log does not answer ({brief(error)}); check that it runs, then try again"
        ) from error
