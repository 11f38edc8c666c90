"""Record batches: whatever is wrong with one, it is named, passed, and nothing else is lost."""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lz4.frame
import pytest
import zstandard
from kafka import TopicPartition
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder

from stream.log import codecs
from stream.log.event_log import Unreadable
from stream.log.record_batches import ReadableRecords
from tests.batch_damage import (
    ATTRIBUTES,
    LENGTH,
    LENGTH_END,
    RECORDS,
    Damage,
    claim_a_key_of_gigabytes,
    claim_more_records,
    flip_content,
    lie_about_a_value,
    lie_about_an_offset,
    lie_about_the_record,
    name_codec_7,
    sealed,
)

PLACE = TopicPartition("t", 0)

# The codecs in the attributes of a batch.
GZIP = 1
SNAPPY = 2
LZ4 = 3
ZSTD = 4

# Where the format's number and the producer's are.
MAGIC = 16
PRODUCER = 43


def batch(first: int, values: Sequence[bytes], codec: int = 0) -> bytearray:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for number, value in enumerate(values):
        builder.append(number, timestamp=0, key=None, value=value, headers=[])
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8, "big")
    return data


@dataclass(frozen=True)
class Outcome:
    """What a reader got of a partition, over as many fetches as it took."""

    values: dict[int, bytes]
    gaps: list[tuple[int, int]]
    reasons: list[str]


def read(partition: Sequence[tuple[int, bytearray]], first: int = 0) -> Outcome:
    """Read a partition of batches with their ends as from a broker, which gives whole batches."""
    values: dict[int, bytes] = {}
    gaps = []
    reasons = []
    offset = first
    while offset < partition[-1][0]:
        answer = b"".join(bytes(data) for end, data in partition if end > offset)
        records = ReadableRecords(
            offset, PLACE, MemoryRecords(answer), isolation_level=IsolationLevel.READ_COMMITTED
        )
        # As many as a poll takes, so that it stops inside of batches.
        for record in records.take(3):
            assert record.offset not in values
            if isinstance(record.value, Unreadable):
                gaps.append((record.value.first, record.offset + 1))
                reasons.append(record.value.reason)
            else:
                values[record.offset] = record.value
        assert records.next_fetch_offset > offset, "reading does not go on"
        offset = records.next_fetch_offset
    return Outcome(values, gaps, reasons)


def value(offset: int) -> bytes:
    return f"value {offset}".encode()


def partition_of(*sizes: int, codec: int = 0) -> list[tuple[int, bytearray]]:
    batches = []
    end = 0
    for size in sizes:
        batches.append((end + size, batch(end, [value(end + n) for n in range(size)], codec)))
        end += size
    return batches


def values_but(end: int, bad: range) -> dict[int, bytes]:
    return {offset: value(offset) for offset in range(end) if offset not in bad}


@pytest.mark.parametrize(
    "damage",
    [
        flip_content,
        name_codec_7,
        lie_about_a_value,
        lie_about_the_record,
        lie_about_an_offset,
        claim_a_key_of_gigabytes,
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_that_is_wrong_is_named_and_all_others_are_read(damage: Damage, place: int) -> None:
    partition = partition_of(4, 7, 3)
    end, data = partition[place]
    damage(data)
    bad = range(end - [4, 7, 3][place], end)
    found = read(partition)
    assert found.values == values_but(14, bad)
    assert found.gaps == [(bad.start, bad.stop)]
    assert f"{len(bad)} offsets of t/0 from {bad.start} on cannot be read" in found.reasons[0]


def test_one_good_event_between_two_bad_batches_is_read() -> None:
    partition = partition_of(6, 1, 24, 2)
    flip_content(partition[0][1])
    name_codec_7(partition[2][1])
    found = read(partition)
    assert found.values == {6: value(6), 31: value(31), 32: value(32)}
    assert found.gaps == [(0, 6), (7, 31)]


def test_reading_from_the_middle_of_a_bad_batch_names_what_is_left_of_it() -> None:
    partition = partition_of(6, 2)
    flip_content(partition[0][1])
    found = read(partition, first=4)
    assert found.gaps == [(4, 6)]
    assert found.values == {6: value(6), 7: value(7)}


def test_the_records_before_a_wrong_one_are_read() -> None:
    partition = partition_of(6, 2)
    data = partition[0][1]
    data[data.index(b"value 4") - 1] += 2
    sealed(data)
    found = read(partition)
    assert found.values == values_but(8, range(4, 6))
    assert found.gaps == [(4, 6)]


def test_records_that_are_only_announced_are_no_gap() -> None:
    partition = partition_of(3, 2)
    claim_more_records(partition[0][1])
    found = read(partition)
    assert found.values == values_but(5, range(0))
    assert found.gaps == []


@pytest.mark.parametrize("codec", [0, GZIP, SNAPPY, LZ4, ZSTD])
def test_any_damaged_byte_loses_no_more_than_its_batch(codec: int) -> None:
    # First offset, length and epoch have no check sum; the broker itself goes by them.
    for place in range(MAGIC, len(partition_of(5, 4, 3, codec=codec)[1][1])):
        for bits in (1, 0x80, 0xFF):
            partition = partition_of(5, 4, 3, codec=codec)
            partition[1][1][place] ^= bits
            found = read(partition)
            covered = set(found.values)
            for begin, end in found.gaps:
                covered |= set(range(begin, end))
            assert covered == set(range(12)), (place, bits)
            good = values_but(12, range(5, 9))
            # The number of the format has no check sum either, and the content may be whole.
            assert found.values in (good, values_but(12, range(0))), (place, bits)
            assert found.values == good or place == MAGIC


def without_size(data: bytes) -> bytes:
    """A frame as Java's stream writes it: what it unpacks to is not told."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


def two_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return bytes(lz4.frame.compress(data[:half]) + lz4.frame.compress(data[half:]))


@pytest.mark.parametrize(
    ("codec", "pack"),
    [
        (GZIP, gzip_encode),
        (SNAPPY, snappy_encode),
        (SNAPPY, lambda data: snappy_encode(data, xerial_compatible=False)),
        (LZ4, lz4_encode),
        (LZ4, two_frames),
        (ZSTD, zstd_encode),
        (ZSTD, without_size),
    ],
)
def test_what_producers_pack_is_unpacked_up_to_a_bound(
    codec: int, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 8000
    packed = pack(data)
    assert codecs.unpack(codec, packed) == data
    monkeypatch.setattr(codecs, "MAX_UNPACKED_BYTES", len(data) - 1)
    with pytest.raises(ValueError, match="at most 2,047,999 bytes when it is unpacked"):
        codecs.unpack(codec, packed)


def test_a_batch_that_unpacks_to_far_too_much_is_named_and_passed() -> None:
    bomb = batch(0, [b"x"] * 3)
    packer = zlib.compressobj(wbits=31)
    zeros = b"".join([packer.compress(bytes(1 << 24)) for _ in range(5)])
    bomb[RECORDS:] = zeros + packer.flush()
    bomb[LENGTH:LENGTH_END] = struct.pack(">i", len(bomb) - LENGTH_END)
    bomb[ATTRIBUTES + 1] |= GZIP
    sealed(bomb)
    found = read([(3, bomb), (4, batch(3, [value(3)]))])
    assert found.values == {3: value(3)}
    assert found.gaps == [(0, 3)]
    assert "when it is unpacked" in found.reasons[0]


def control(first: int, producer: int, kind: int) -> bytearray:
    """The marker of a transaction's end; kind 0 aborts, 1 commits."""
    data = batch(first, [struct.pack(">hi", 0, 0)])
    key = struct.pack(">hh", 0, kind)
    record = bytes([0, 0, 0, 8, *key, 12, *bytes(6), 0])
    data[RECORDS:] = bytes([2 * len(record)]) + record
    data[LENGTH:LENGTH_END] = struct.pack(">i", len(data) - LENGTH_END)
    return of_producer(data, producer, 0x30)


def of_producer(data: bytearray, producer: int, flags: int) -> bytearray:
    data[ATTRIBUTES + 1] |= flags
    data[PRODUCER : PRODUCER + 8] = struct.pack(">q", producer)
    sealed(data)
    return data


@dataclass(frozen=True)
class Aborted:
    """One of the aborted transactions that an answer lists."""

    producer_id: int
    first_offset: int


def test_a_damaged_marker_of_an_abort_hides_no_committed_event() -> None:
    aborted = of_producer(batch(0, [b"aborted"]), 7, 0x10)
    marker = control(1, 7, 0)
    flip_content(marker)
    good = of_producer(batch(2, [b"committed"]), 7, 0x10)
    answer = MemoryRecords(bytes(aborted + marker + good))

    def fetch(offset: int, records: MemoryRecords, listed: list[Any]) -> list[Any]:
        reader = ReadableRecords(
            offset,
            PLACE,
            records,
            isolation_level=IsolationLevel.READ_COMMITTED,
            aborted_transactions=listed,
        )
        records_read: list[Any] = reader.take()
        return [*records_read, reader.next_fetch_offset]

    stand_in, behind = fetch(0, answer, [Aborted(7, 0)])
    assert (stand_in.offset, behind) == (1, 2)
    # The broker lists what was aborted from there on: nothing.
    committed, end = fetch(behind, MemoryRecords(bytes(good)), [])
    assert (committed.value, end) == (b"committed", 3)
