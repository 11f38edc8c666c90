"""The event log in Kafka. Offsets are those in Postgres, committed with the work; Kafka's own are kept for its tools only.

Traps that this module steps around, each with a test: kafka-python commits by itself and starts at the newest event unless
told otherwise, and a rebalance hands out partitions at Kafka's offsets, not ours.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import psycopg
from kafka import (
    ConsumerRebalanceListener,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.errors import RetryLaterError, UsageError
from schemas.named_sql import queries
from schemas.settings import KafkaSettings
from stream.log.event_log import Batch, Connection, Event, Message, Partition, joining
from stream.log.offsets import committed, contiguous_batch
from stream.log.topics import TOPICS, Topic

OUTBOX_CHANNEL = "sigma_outbox"
"""Notified when events wait in the outbox."""

SESSION_S = 6.0
"""A member that was killed loses its partitions after so many seconds: the least that a broker allows by default."""

_REQUEST_MS, _DELIVERY_MS, _READ_S, _TELL_S = 5_000, 8_000, 15.0, 2.0


class KafkaLog:
    """`EventLog` in Kafka. Publishing is safe from several threads.

    An event published inside a database transaction goes to the outbox table first and from there to Kafka (`stream.outbox`),
    so that it exists if and only if the transaction committed.
    """

    def __init__(self, settings: KafkaSettings, database_url: str) -> None:
        self._settings = settings
        self._url = database_url
        self._lock = threading.Lock()
        """Guards `_producer` and `_reader`, which are made when first used."""
        self._producer: Any = None
        self._reader: Any = None
        self._scopes: dict[str, str] = {}

    def ensure_topics(self, topics: Sequence[Topic] = TOPICS) -> None:
        """See `EventLog`."""
        with _retry("create topics"), self._admin() as admin:
            try:
                there = set(admin.list_topics())
                missing = {
                    topic.name: {
                        "num_partitions": topic.partitions,
                        "replication_factor": self._settings.replication,
                        "configs": topic.config,
                    }
                    for topic in topics
                    if topic.name not in there
                }
                if missing:
                    admin.create_topics(missing, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                # Another process was faster with one of them; the rest comes with its own call.
                return

    def publish(self, conn: Connection | None, messages: Sequence[Message]) -> None:
        """See `EventLog`. Without a connection, returns when every broker in sync has all of them."""
        if not messages:
            return
        if conn is not None:
            columns = {
                "topics": [m.topic for m in messages],
                "keys": [m.key for m in messages],
                "values": [m.value for m in messages],
                "headers": [json.dumps(dict(m.headers)) for m in messages],
            }
            with joining(conn):
                conn.execute(queries()["outbox_add"], columns)
                conn.execute(queries()["outbox_notify"])
            return
        unknown = {m.topic for m in messages} - {topic.name for topic in TOPICS}
        if unknown:
            raise UsageError(
                f"there is no topic {', '.join(sorted(unknown))}; the topics are declared in stream/topics.py: sigma init"
            )
        with _retry("publish"):
            producer = self._publisher()
            sent = [
                producer.send(
                    m.topic,
                    key=m.key.encode(),
                    value=m.value,
                    headers=[(k, v.encode()) for k, v in m.headers.items()],
                )
                for m in messages
            ]
            errors = []
            deadline = time.monotonic() + _DELIVERY_MS / 1000
            for one in sent:
                try:
                    one.get(timeout=max(0.0, deadline - time.monotonic()))
                except KafkaError as error:
                    errors.append(error)
            if errors:
                # An idempotent producer that gave up on a batch accepts no further one in its place: begin with a new one.
                self._forget_publisher(producer)
                raise errors[0]

    def scope(self, topic: str) -> str:
        """See `EventLog`. With the topic's id, which changes when it is deleted and created again or the cluster is another."""
        if topic not in self._scopes:
            with _retry("describe topics"), self._admin() as admin:
                for found in admin.describe_topics([topic.name for topic in TOPICS]):
                    if found["topic_id"]:
                        self._scopes[found["name"]] = f"{found['name']}#{found['topic_id']}"
        if topic not in self._scopes:
            raise RetryLaterError(f"Kafka has no topic {topic} yet; create it with: sigma init")
        return self._scopes[topic]

    def end_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """See `EventLog`."""
        with self._lock, _retry("read offsets"):
            reader = self._own_reader()
            places = [
                TopicPartition(topic, p)
                for topic in topics
                for p in sorted(reader.partitions_for_topic(topic) or ())
            ]
            found = reader.end_offsets(places) if places else {}
            return {(place.topic, place.partition): int(found[place]) for place in places}

    def read(self, topic: str, partition: int, *, first: int = 0, limit: int = 100) -> list[Event]:
        """See `EventLog`. Events older than the topic's retention are not there any more."""
        with self._lock, _retry("read events"):
            reader, place = self._own_reader(), TopicPartition(topic, partition)
            reader.assign([place])
            begin, end = (
                reader.beginning_offsets([place])[place],
                reader.end_offsets([place])[place],
            )
            at, found = max(first, begin), list[Event]()
            reader.seek(place, at)
            deadline = time.monotonic() + _READ_S
            while at < end and len(found) < limit:
                if time.monotonic() > deadline:
                    raise RetryLaterError(
                        f"{topic}/{partition} was not read up to offset {end} within {_READ_S:g} seconds; try again"
                    )
                records = reader.poll(timeout_ms=500, max_records=limit - len(found)).get(place, [])
                found += [event_of(record, record.timestamp / 1000) for record in records]
                at = reader.position(place)
            return found

    def open_consumer(self, group: str, topics: Sequence[str]) -> "KafkaGroupConsumer":
        """See `EventLog`."""
        with _retry("join the group"):
            conn = psycopg.connect(
                self._url, autocommit=True, application_name=f"sigma consumer {group}"
            )
            try:
                return KafkaGroupConsumer(self, self._settings, conn, group, topics)
            except BaseException:
                conn.close()
                raise

    def close(self) -> None:
        """See `EventLog`."""
        with self._lock:
            for one in (self._producer, self._reader):
                if one is not None:
                    one.close()
            self._producer = self._reader = None

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        admin = KafkaAdminClient(**connection(self._settings), request_timeout_ms=_REQUEST_MS)
        try:
            yield admin
        finally:
            admin.close()

    def _publisher(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(
                    **connection(self._settings),
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=2,
                    max_block_ms=_REQUEST_MS,
                    request_timeout_ms=_REQUEST_MS,
                    delivery_timeout_ms=_DELIVERY_MS,
                    allow_auto_create_topics=False,
                )
            return self._producer

    def _forget_publisher(self, producer: Any) -> None:
        with self._lock:
            if self._producer is producer:
                self._producer = None
        with suppress(KafkaError):
            producer.close(timeout=2)

    def _own_reader(self) -> Any:
        if self._reader is None:
            self._reader = KafkaConsumer(
                **connection(self._settings),
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
            )
        return self._reader


class KafkaGroupConsumer:
    """One member of a group, on a connection of its own to read the group's offsets.

    Membership is dynamic and rebalancing cooperative: when a member joins or leaves, only the partitions that move pause. A
    killed worker takes longer to load its model than the 6 seconds after which others take over, so static membership,
    which would keep its partitions waiting for it, brings nothing.
    """

    def __init__(
        self,
        log: KafkaLog,
        settings: KafkaSettings,
        conn: Connection,
        group: str,
        topics: Sequence[str],
    ) -> None:
        self._log = log
        self._topics = list(topics)
        self._conn = conn
        self._group = group
        self._at: dict[TopicPartition, int] = {}
        """Offset that the next poll of each assigned partition returns."""
        self._told = 0.0
        self._consumer = KafkaConsumer(
            **connection(settings),
            group_id=f"sigma-{group}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            partition_assignment_strategy=(CooperativeStickyAssignor,),
            session_timeout_ms=int(SESSION_S * 1000),
            heartbeat_interval_ms=1500,
            fetch_max_wait_ms=250,
        )
        self._consumer.subscribe(list(topics), listener=_Listener(self))

    def poll(self, *, max_events: int = 100, timeout_s: float = 1.0) -> Batch:
        """See `Consumer`. Begins where the group has committed in Postgres; polling again without a commit returns the same."""
        with _retry("poll"):
            self.align(self._consumer.assignment())
            self._tell()
            found = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_events)
            brought = [
                event_of(record, record.timestamp / 1000)
                for place in found
                if place in self._at
                for record in found[place]
            ]
            batch = contiguous_batch(
                self._log,
                {(place.topic, place.partition): at for place, at in self._at.items()},
                brought,
            )
            self._at |= {TopicPartition(*place): end for place, (_, end) in batch.positions.items()}
            return batch

    def heartbeat(self) -> None:
        """See `Consumer`. What comes in although everything is paused is read again by the next poll."""
        with _retry("hold"):
            paused = self._consumer.assignment()
            self._consumer.pause(*paused)
            for place in self._consumer.poll(timeout_ms=0):
                self._at.pop(place, None)
            self._consumer.resume(*(paused & self._consumer.assignment()))

    def close(self) -> None:
        """See `Consumer`."""
        try:
            self._consumer.close(autocommit=False)
        except KafkaError:
            # The broker is away: it will notice by itself that this member is gone.
            pass
        finally:
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

    def align(self, places: set[TopicPartition]) -> None:
        """Seek every partition that does not stand where Postgres says."""
        stored = committed(self._log, self._conn, self._group, self._topics) if places else {}
        for place in places:
            wanted = stored.get((place.topic, place.partition), 0)
            if self._at.get(place) != wanted:
                self._consumer.seek(place, wanted)
                self._at[place] = wanted

    def forget(self, places: Sequence[TopicPartition]) -> None:
        """Partitions that another member has now."""
        for place in places:
            self._at.pop(place, None)

    def _tell(self) -> None:
        """Let Kafka know where the group stands, for tools that show its lag. Nothing here reads it."""
        if time.monotonic() - self._told > _TELL_S and self._at:
            self._told = time.monotonic()
            places = {place: OffsetAndMetadata(at, "", -1) for place, at in self._at.items()}
            self._consumer.commit_async(places, callback=lambda _places, _result: None)


class _Listener(ConsumerRebalanceListener):
    """Seeks on assignment, before anything is fetched."""

    def __init__(self, member: KafkaGroupConsumer) -> None:
        self._member = member

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._member.forget(assigned)
        self._member.align(set(assigned))

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._member.forget(revoked)


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """What every client is told about the brokers."""
    # The client's own patience between two tries grows to 30 seconds, long after a broker is back.
    found: dict[str, Any] = {
        "bootstrap_servers": list(settings.bootstrap),
        "client_id": "sigma",
        "reconnect_backoff_max_ms": 1000,
    }
    if settings.username is not None:
        found |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password,
        }
    secured = {
        (False, False): "PLAINTEXT",
        (True, False): "SSL",
        (False, True): "SASL_PLAINTEXT",
        (True, True): "SASL_SSL",
    }
    return found | {"security_protocol": secured[settings.tls, settings.username is not None]}


def event_of(record: Any, seconds: float) -> Event:
    """A record of kafka-python, or a message of faust, as an event; `seconds` is its time since 1970.

    A foreign producer may leave out key, value and headers, or write them in any bytes.
    """
    return Event(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"").decode("utf-8", "replace").replace("\x00", "\ufffd"),
        value=record.value or b"",
        headers=headers_of(record),
        published_at=datetime.fromtimestamp(seconds, UTC),
    )


def headers_of(record: Any) -> dict[str, str]:
    """Headers as text; they come as pairs or as a mapping."""
    found = record.headers or {}
    pairs = found.items() if isinstance(found, Mapping) else found
    return {name: (value or b"").decode("utf-8", "replace") for name, value in pairs}


@contextmanager
def _retry(what: str) -> Iterator[None]:
    """Errors of brokers and database as `RetryLaterError`."""
    try:
        yield
    except KafkaError as error:
        raise RetryLaterError(
            f"Kafka could not {what} ({type(error).__name__}: {error}); check that the brokers answer"
        ) from error
    except psycopg.OperationalError as error:
        raise RetryLaterError(
            f"the database does not answer ({str(error).strip()[:300]}); check that it runs"
        ) from error
