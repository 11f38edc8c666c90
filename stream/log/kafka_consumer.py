"""A member of a Kafka consumer group whose offsets are in PostgreSQL.

Traps that this module avoids, each with a test: kafka-python commits by itself and starts at the
newest event unless told otherwise, and a rebalance assigns partitions at Kafka's offsets, not ours.
"""

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import psycopg
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from schemas.service_settings import KafkaSettings
from stream.log.event_log import Batch, EventLog, Partition
from stream.log.kafka_client import (
    HEARTBEAT_S,
    SESSION_TIMEOUT_S,
    event_of,
    reader_settings,
    retry_later,
)
from stream.log.offsets import committed, contiguous_batch
from stream.log.record_batches import open_kafka_reader
from stream.session import Connection, connection_options

# How long a broker may wait to fill a fetch.
_FETCH_WAIT_MS = 250

# How often Kafka is told the group's offsets; its tools need no more.
_REPORT_INTERVAL_S = 2.0


class KafkaGroupConsumer:
    """`Consumer` in Kafka, with its own database connection to read the group's offsets.

    Membership is dynamic and rebalancing cooperative: when a member joins or leaves, only the
    partitions that move pause. Static membership would keep a killed worker's partitions waiting
    for it, and to load its model again takes longer than the session timeout, after which others
    take over.
    """

    def __init__(
        self,
        log: EventLog,
        consumer: KafkaConsumer,
        conn: Connection,
        group: str,
        topics: Sequence[str],
    ) -> None:
        self._log = log
        self._consumer = consumer
        self._conn = conn
        self._group = group
        self._topics = list(topics)
        self._next_offsets: dict[TopicPartition, int] = {}
        """The offset that the next poll of each assigned partition returns."""
        self._reported_at = 0.0
        """When Kafka was told the offsets last, by the monotonic clock."""

    @classmethod
    def open(
        cls,
        log: EventLog,
        settings: KafkaSettings,
        database_url: str,
        group: str,
        topics: Sequence[str],
    ) -> Self:
        """Connect to brokers and database and join the group.

        `RetryLaterError` when one of them is unavailable.
        """
        with retry_later("join the group"):
            conn = psycopg.connect(
                database_url,
                autocommit=True,
                application_name=f"sigma consumer {group}",
                **connection_options(database_url),
            )
            try:
                member = cls(log, _kafka_consumer(settings, group), conn, group, topics)
                member._subscribe()
            except BaseException:
                # Nobody else could close it: the caller gets no consumer.
                conn.close()
                raise
            return member

    def poll(self, *, max_events: int = 100, timeout_s: float = 1.0) -> Batch:
        """See `Consumer`.

        Begins where the group has committed in PostgreSQL; polling again without a commit returns
        the same events.
        """
        with retry_later("poll"):
            self._seek_to_committed(self._consumer.assignment())
            # Before the poll: these offsets are committed, those of the poll are not yet.
            self._report_offsets()
            records = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_events)
            batch = self._batch(records)
            for partition, (_, end) in batch.positions.items():
                self._next_offsets[TopicPartition(*partition)] = end
            # The client brought more than the batch has. The next poll seeks back for it: nothing
            # else would bring it before the next event does.
            self._forget([TopicPartition(*partition) for partition in self._moved()])
            return batch

    def heartbeat(self) -> None:
        """See `Consumer`. Polls with everything paused, because only a poll keeps membership."""
        with retry_later("stay in the group"):
            paused = self._consumer.assignment()
            self._consumer.pause(*paused)
            # Records may arrive all the same (of partitions just assigned): forgetting the offset
            # makes the next poll seek back, so that they are read again.
            self._forget(self._consumer.poll(timeout_ms=0))
            self._consumer.resume(*(paused & self._consumer.assignment()))

    def close(self) -> None:
        """See `Consumer`."""
        try:
            self._consumer.close(autocommit=False)
        except KafkaError:
            # The broker is unavailable: it will notice by itself that this member is gone.
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

    def partitions_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Seek new partitions to our offsets; called in a poll, before anything is fetched."""
        # Another member may have committed since this one had them last.
        self._forget(partitions)
        self._seek_to_committed(set(partitions))

    def partitions_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Forget partitions that another member has now; called in a poll."""
        self._forget(partitions)

    def _begins(self) -> dict[Partition, int]:
        """The offset at which each assigned partition goes on."""
        return {
            (partition.topic, partition.partition): offset
            for partition, offset in self._next_offsets.items()
        }

    def _moved(self) -> set[Partition]:
        """Partitions in which the client has come further than the batches, events or not."""
        moved = set()
        for partition, offset in self._next_offsets.items():
            position = self._consumer.position(partition, timeout_ms=0)
            if position is not None and position > offset:
                moved.add((partition.topic, partition.partition))
        return moved

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._next_offsets.pop(partition, None)

    def _subscribe(self) -> None:
        self._consumer.subscribe(self._topics, listener=_RebalanceListener(self))

    def _seek_to_committed(self, partitions: set[TopicPartition]) -> None:
        """Seek every partition that is not where the group has committed."""
        if not partitions:
            return
        offsets = committed(self._log, self._conn, self._group, self._topics)
        for partition in partitions:
            offset = offsets.get((partition.topic, partition.partition), 0)
            if self._next_offsets.get(partition) != offset:
                self._consumer.seek(partition, offset)
                self._next_offsets[partition] = offset

    def _batch(self, records: dict[TopicPartition, list[Any]]) -> Batch:
        """The records as a batch without gaps, less those of partitions that were revoked."""
        delivered = []
        for partition, partition_records in records.items():
            # Revoked in this very poll otherwise.
            if partition in self._next_offsets:
                for record in partition_records:
                    delivered.append(event_of(record, record.timestamp / 1000))
        return contiguous_batch(self._log, self._begins(), delivered, self._moved())

    def _report_offsets(self) -> None:
        """Tell Kafka the group's offsets, for tools that show its lag. Nothing here reads them."""
        now = time.monotonic()
        if not self._next_offsets or now - self._reported_at <= _REPORT_INTERVAL_S:
            return
        self._reported_at = now
        offsets = {
            partition: OffsetAndMetadata(offset, "", -1)
            for partition, offset in self._next_offsets.items()
        }
        # The callback keeps a failure silent: the next report follows soon.
        self._consumer.commit_async(offsets, callback=lambda _offsets, _result: None)


class _RebalanceListener(ConsumerRebalanceListener):
    """Passes rebalances on to the member."""

    def __init__(self, member: KafkaGroupConsumer) -> None:
        self._member = member

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._member.partitions_assigned(assigned)

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._member.partitions_revoked(revoked)


def _kafka_consumer(settings: KafkaSettings, group: str) -> KafkaConsumer:
    return open_kafka_reader(
        **reader_settings(settings),
        group_id=f"sigma-{group}",
        partition_assignment_strategy=(CooperativeStickyAssignor,),
        session_timeout_ms=int(SESSION_TIMEOUT_S * 1000),
        heartbeat_interval_ms=int(HEARTBEAT_S * 1000),
        fetch_max_wait_ms=_FETCH_WAIT_MS,
    )
