"""The event log in Kafka.

Offsets are those in PostgreSQL, committed with the work; Kafka's own are kept only for its tools.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.errors import RetryLaterError, UsageError
from schemas.service_settings import KafkaSettings
from stream.log.event_log import Event, Message, Partition, Span
from stream.log.kafka_client import (
    DELIVERY_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    TOO_LARGE,
    client_settings,
    event_of,
    reader_settings,
    retry_later,
)
from stream.log.kafka_consumer import KafkaGroupConsumer
from stream.log.outbox import add_to_outbox
from stream.log.record_batches import open_kafka_reader
from stream.log.topics import TOPICS, Topic
from stream.session import Connection

# How long one `read` may take; a span of 1000 events takes well below a second.
_READ_TIMEOUT_S = 15.0

# How long one poll of a `read` waits, so that the timeout is noticed.
_READ_POLL_MS = 500

# How long the producer waits to fill a request; it costs freshness, so it is short.
_LINGER_MS = 2

# How long a producer that failed may take to close; its broker may not answer.
_CLOSE_TIMEOUT_S = 2


class KafkaLog:
    """`EventLog` in Kafka. Publishing is thread-safe.

    An event published in a database transaction goes to the outbox table first and from there to
    Kafka (`stream.log.outbox`), so that it exists if and only if the transaction committed.
    Clients are opened when first needed.
    """

    def __init__(self, settings: KafkaSettings, database_url: str) -> None:
        self._settings = settings
        self._url = database_url
        self._lock = threading.Lock()
        """Guards the clients. Held while reading: consumers are not thread-safe."""
        self._producer: KafkaProducer | None = None
        self._reader: KafkaConsumer | None = None
        self._ends: KafkaConsumer | None = None
        self._offset_scopes: dict[str, str] = {}

    def ensure_topics(self, topics: Sequence[Topic] = TOPICS) -> None:
        """See `EventLog`."""
        with retry_later("create topics"), self._admin() as admin:
            existing = set(admin.list_topics())
            missing = {}
            for topic in topics:
                if topic.name not in existing:
                    missing[topic.name] = {
                        "num_partitions": topic.partitions,
                        "replication_factor": self._settings.replication,
                        "configs": topic.config,
                    }
            # When another process was faster with one topic, its own call creates the rest.
            with suppress(TopicAlreadyExistsError):
                if missing:
                    admin.create_topics(missing, wait_for_metadata=True)

    def publish(self, conn: Connection | None, messages: Sequence[Message]) -> None:
        """See `EventLog`. Without a connection, return when every in-sync broker has them all."""
        if not messages:
            return
        if conn is not None:
            add_to_outbox(conn, messages)
            return
        _require_declared(messages)
        with retry_later("publish"):
            self._send(messages)

    def offset_scope(self, topic: str) -> str:
        """See `EventLog`.

        The scope has the topic's id, which is another one after the topic was deleted and created
        again, and in another cluster.
        """
        if topic not in self._offset_scopes:
            with retry_later("describe topics"), self._admin() as admin:
                for description in admin.describe_topics([topic.name for topic in TOPICS]):
                    # A topic that does not exist is described without an id.
                    if description["topic_id"]:
                        name = description["name"]
                        self._offset_scopes[name] = f"{name}#{description['topic_id']}"
        if topic not in self._offset_scopes:
            raise RetryLaterError(f"Kafka has no topic {topic} yet; create it with: sigma init")
        return self._offset_scopes[topic]

    def end_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """See `EventLog`."""
        with self._lock, retry_later("read offsets"):
            reader = self._open_ends()
            partitions = []
            for topic in topics:
                for number in sorted(reader.partitions_for_topic(topic) or ()):
                    partitions.append(TopicPartition(topic, number))
            # The client refuses an empty list.
            ends = reader.end_offsets(partitions) if partitions else {}
            return {
                (partition.topic, partition.partition): int(ends[partition])
                for partition in partitions
            }

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        """See `EventLog`. Events older than the topic's retention are left out.

        So are those of transactions that were aborted or are still open. A batch that cannot be
        unpacked is one event that says so.
        """
        return list(self.read_span(topic, partition, first=first, limit=limit).events)

    def read_span(self, topic: str, partition: int, *, first: int, limit: int) -> Span:
        """See `EventLog`. It ends where the first open transaction begins, if there is one."""
        place = TopicPartition(topic, partition)
        with self._lock, retry_later(f"read {topic}/{partition} from offset {first} on"):
            return _read(self._open_reader(), place, first, limit)

    def open_consumer(self, group: str, topics: Sequence[str]) -> KafkaGroupConsumer:
        """See `EventLog`."""
        return KafkaGroupConsumer.open(self, self._settings, self._url, group, topics)

    def close(self) -> None:
        """See `EventLog`."""
        with self._lock:
            for client in (self._producer, self._reader, self._ends):
                if client is not None:
                    client.close()
            self._producer = None
            self._reader = None
            self._ends = None

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        admin = KafkaAdminClient(
            **client_settings(self._settings), request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        try:
            yield admin
        finally:
            admin.close()

    def _send(self, messages: Sequence[Message]) -> None:
        producer = self._open_producer()
        # All are sent before the first is awaited, so that they share requests.
        pending = []
        for message in messages:
            headers = [(name, value.encode()) for name, value in message.headers.items()]
            pending.append(
                producer.send(
                    message.topic, key=message.key.encode(), value=message.value, headers=headers
                )
            )
        errors = []
        deadline = time.monotonic() + DELIVERY_TIMEOUT_MS / 1000
        for delivery in pending:
            try:
                delivery.get(timeout=max(0.0, deadline - time.monotonic()))
            except KafkaError as error:
                errors.append(error)
        if errors:
            # An idempotent producer that gave up on a batch accepts no later one in its place.
            self._discard_producer(producer)
            # An unavailable broker comes first: of what is too large there is time to tell.
            raise next((error for error in errors if not isinstance(error, TOO_LARGE)), errors[0])

    def _open_producer(self) -> KafkaProducer:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(
                    **client_settings(self._settings),
                    # An event must survive a broker, and a retry must not write it twice.
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=_LINGER_MS,
                    max_block_ms=REQUEST_TIMEOUT_MS,
                    request_timeout_ms=REQUEST_TIMEOUT_MS,
                    delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                    # A topic created by accident would have the wrong partitions.
                    allow_auto_create_topics=False,
                )
            return self._producer

    def _discard_producer(self, producer: KafkaProducer) -> None:
        with self._lock:
            # Another thread may have replaced it already.
            if self._producer is producer:
                self._producer = None
        with suppress(KafkaError):
            producer.close(timeout=_CLOSE_TIMEOUT_S)

    def _open_reader(self) -> KafkaConsumer:
        """Return the consumer without a group that reads events; call with the lock."""
        if self._reader is None:
            self._reader = open_kafka_reader(**reader_settings(self._settings))
        return self._reader

    def _open_ends(self) -> KafkaConsumer:
        """Return the consumer that asks for the ends of partitions; call with the lock.

        One that reads what was committed is told where the first open transaction begins.
        """
        if self._ends is None:
            self._ends = KafkaConsumer(
                **client_settings(self._settings),
                enable_auto_commit=False,
                allow_auto_create_topics=False,
            )
        return self._ends


def _require_declared(messages: Sequence[Message]) -> None:
    """Refuse topics that are not declared: the producer would only time out."""
    unknown = {message.topic for message in messages} - {topic.name for topic in TOPICS}
    if unknown:
        raise UsageError(
            f"there is no topic {', '.join(sorted(unknown))}; "
            "declare it in stream/log/topics.py, then create it with: sigma init"
        )


def _read(reader: KafkaConsumer, partition: TopicPartition, first: int, limit: int) -> Span:
    # Assigned, not subscribed: a reader without a group never waits for a rebalance.
    reader.assign([partition])
    begin = reader.beginning_offsets([partition])[partition]
    end = reader.end_offsets([partition])[partition]
    # Retention may have removed the first ones.
    offset = max(first, begin)
    reader.seek(partition, offset)
    events: list[Event] = []
    deadline = time.monotonic() + _READ_TIMEOUT_S
    while offset < end and len(events) < limit:
        if time.monotonic() > deadline:
            break
        records = reader.poll(timeout_ms=_READ_POLL_MS, max_records=limit - len(events))
        for record in records.get(partition, ()):
            events.append(event_of(record, record.timestamp / 1000))
        # Not the offset after the last event: control records have offsets but are not returned.
        offset = reader.position(partition)
    if first < offset or offset >= end:
        return Span(tuple(events), max(first, offset))
    raise RetryLaterError(
        f"nothing of {partition.topic}/{partition.partition} came from offset {first} on within "
        f"{_READ_TIMEOUT_S:g} seconds; try again"
    )
