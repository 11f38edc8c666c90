"""faust's consumer, kept from two things: uncommitted events, and batches that stop it for good.

faust reads committed events only where it produces in transactions, and offers no setting. And a
batch that its client cannot unpack ends the whole app, each time that it starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import faust
from aiokafka import ConsumerRecord
from aiokafka.consumer import fetcher
from faust.transport.drivers import aiokafka as driver
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords

from stream.log.event_log import Unreadable
from stream.log.record_batches import ReadableRecords


@dataclass(frozen=True, slots=True)
class _AbortedTransaction:
    producer_id: int
    first_offset: int


class FaustRecords:
    """What aiokafka calls `PartitionRecords`, by the unpacking that all readers here share.

    Stand-ins for what cannot be read are left out. faust's events are only a hint: the gap shows,
    and the handler reads the log there.
    """

    def __init__(
        self,
        tp: Any,
        records: MemoryRecords,
        aborted_transactions: Sequence[tuple[int, int]] | None,
        fetch_offset: int,
        *_settings: Any,
    ) -> None:
        aborted = []
        for producer_id, first_offset in aborted_transactions or ():
            aborted.append(_AbortedTransaction(producer_id, first_offset))
        self._records = ReadableRecords(
            fetch_offset,
            tp,
            records,
            isolation_level=IsolationLevel.READ_COMMITTED,
            aborted_transactions=aborted,
        )
        self._iterator = self._records.record_iterator

    @property
    def next_fetch_offset(self) -> int:
        """Where reading goes on."""
        return int(self._records.next_fetch_offset)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        for record in self._iterator:
            if not isinstance(record.value, Unreadable):
                return _as_aiokafka(record)
        raise StopIteration


class CommittedReads(driver.AIOKafkaConsumerThread):
    """A consumer thread that reads what was committed and passes what it cannot unpack."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Its constructor's argument of this name is fixed inside faust's method.
        consumer._isolation_level = "read_committed"
        # These two names are all by which an answer is unpacked; there is no setting for them.
        vars(fetcher).update(MemoryRecords=MemoryRecords, PartitionRecords=FaustRecords)
        return consumer


class CommittedConsumer(driver.Consumer):
    """faust's consumer with that thread."""

    def _new_consumer_thread(self) -> CommittedReads:
        return CommittedReads(self, loop=self.loop, beacon=self.beacon)


class CommittedTransport(driver.Transport):
    """faust's transport with that consumer."""

    Consumer = CommittedConsumer


class CommittedApp(faust.App):
    """A faust app with that transport."""

    def _new_transport(self) -> CommittedTransport:
        return CommittedTransport(self.conf.broker_consumer, self)


def _as_aiokafka(record: Any) -> Any:
    return ConsumerRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        timestamp_type=record.timestamp_type,
        key=record.key,
        value=record.value,
        checksum=record.checksum,
        serialized_key_size=record.serialized_key_size,
        serialized_value_size=record.serialized_value_size,
        headers=tuple(record.headers),
    )
