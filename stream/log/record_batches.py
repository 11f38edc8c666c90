"""Record batches of Kafka, unpacked in one way for every reader; no reader is stopped by one.

Clients raise for a batch that they cannot unpack, whatever the reason: a codec that they lack, a
broken disk under the broker, a record whose lengths are wrong. They give none of its records, and
stop there again after every restart. Here one record stands for such a batch and names it, and
reading goes on behind it.

The format: https://kafka.apache.org/documentation/#recordbatch
"""

import time
from collections.abc import Iterator
from typing import Any

import structlog
from aiokafka.record.util import calc_crc32c
from kafka import KafkaConsumer
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

from schemas.errors import brief
from stream.log.codecs import unpack
from stream.log.event_log import Unreadable

log = structlog.get_logger()

# The format of the batches that brokers write since Kafka 0.11. Those before have other headers.
_MAGIC = 2

# Bytes of a batch's first offset, at its begin in every format.
_OFFSET_BYTES = 8


class ReadableRecords(Fetcher.PartitionRecords):
    """The records of one partition in one answer of a broker.

    The value of one that stands for what cannot be read is `Unreadable`.
    """

    def _unpack_records(
        self, tp: Any, records: Any, key_deserializer: Any, value_deserializer: Any
    ) -> Iterator[Any]:
        batches = _Batches(records, self.fetch_offset)
        delivered = -1
        try:
            for record in super()._unpack_records(
                tp, batches, key_deserializer, value_deserializer
            ):
                batches.require_next(record.offset, delivered)
                delivered = record.offset
                yield record
            return
        except MemoryError:
            # Says nothing about the batch: it is read again when there is memory.
            raise
        except Exception as error:
            failure = error
        first = max(batches.begin, delivered + 1)
        # What is behind comes with the next answer, which tells anew what was aborted: the marker
        # of a transaction's end may be what cannot be read.
        self.next_fetch_offset = max(batches.end, first)
        log.error(
            "record batch cannot be read",
            topic=tp.topic,
            partition=tp.partition,
            offset=first,
            offsets=batches.end - first,
            reason=brief(failure),
        )
        if first < batches.end:
            yield _stand_in(tp, first, batches.end, failure)
        self.drain()


def open_kafka_reader(**arguments: Any) -> KafkaConsumer:
    """Open a consumer of kafka-python that passes what it cannot unpack."""
    consumer = KafkaConsumer(**arguments)
    # Where the client looks up what unpacks an answer; it has no setting for it.
    consumer._fetcher.PartitionRecords = ReadableRecords
    return consumer


class _Batches:
    """The batches of an answer, one by one, and the offsets [begin, end) of the one in work."""

    def __init__(self, records: Any, fetch_offset: int) -> None:
        self._records = records
        self._stop: int | None = None
        """The end that the header of the batch in work tells."""
        self.begin = fetch_offset
        self.end = fetch_offset

    def next_batch(self) -> Any:
        """Return the next batch; None behind the last. `CorruptRecordError` when it is none."""
        piece = self._records._next_slice
        if piece is None:
            return None
        self.begin = self.end
        # At least one offset further, whatever a header says: or it would be met for ever.
        self.end = self.begin + 1
        self._stop = None
        batch = self._records.next_batch()
        behind = _first_offset(self._records._next_slice)
        # The next batch is a better witness than the header of one that may be damaged.
        self.end = max(self.end, behind or 0)
        if batch.magic >= _MAGIC:
            batch = _Batch(piece)
            self._use_header(batch, behind)
        return batch

    def require_next(self, offset: int, before: int) -> None:
        """Refuse a record whose offset is not behind the one before, or not in its batch."""
        if offset <= before or (self._stop is not None and offset >= self._stop):
            raise CorruptRecordError(
                f"a record's offset must be above {before} and below {self._stop}, got {offset}"
            )

    def _use_header(self, batch: "_Batch", behind: int | None) -> None:
        stop = batch.next_offset
        if stop <= self.begin or (behind is not None and stop > behind):
            raise CorruptRecordError(
                f"a batch must end between offset {self.begin} and {behind}, got {stop - 1}"
            )
        # The sum of a damaged batch is wrong; then its two numbers of records must agree.
        if batch.validate_crc() or batch.records_count == batch.last_offset_delta + 1:
            self.begin = max(self.begin, batch.base_offset)
            self.end = max(self.end, stop)
        self._stop = stop


class _Batch(DefaultRecordBatch):
    """A batch with codecs that are bounded, and a check sum that is computed in C."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def validate_crc(self) -> bool:
        content = bytes(self._buffer[self.ATTRIBUTES_OFFSET :])
        return bool(self.crc == calc_crc32c(content))

    def _maybe_uncompress(self) -> None:
        if not self._decompressed and self.compression_type != self.CODEC_NONE:
            packed = bytes(self._buffer[self._pos :])
            self._buffer = bytearray(unpack(self.compression_type, packed))
            self._pos = 0
        self._decompressed = True


def _first_offset(piece: Any) -> int | None:
    if piece is None:
        return None
    return int.from_bytes(piece[:_OFFSET_BYTES], "big", signed=True)


def _stand_in(partition: Any, first: int, end: int, error: Exception) -> Any:
    """A record of the last of the offsets [first, end), which cannot be read."""
    reason = (
        f"{end - first} offsets of {partition.topic}/{partition.partition} from {first} on cannot "
        f"be read ({type(error).__name__}: {brief(error)}); let the producer send these events "
        "again, uncompressed or with gzip, snappy, lz4 or zstd"
    )
    record = dict.fromkeys(ConsumerRecord._fields)
    record |= {"topic": partition.topic, "partition": partition.partition, "offset": end - 1}
    record |= {"timestamp": int(time.time() * 1000), "value": Unreadable(first, reason)}
    return ConsumerRecord(**record)
