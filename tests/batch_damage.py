"""What can be wrong with a record batch of Kafka, as functions that make it so.

The places of the fields: https://kafka.apache.org/documentation/#recordbatch.
"""

import struct
from collections.abc import Callable

from aiokafka.record.util import calc_crc32c

# The length that follows, the check sum, and what it covers.
LENGTH = 8
LENGTH_END = 12
CRC = 17
ATTRIBUTES = 21

# The records, and the last byte of their number before them.
RECORDS = 61

Damage = Callable[[bytearray], None]


def sealed(data: bytearray) -> None:
    """Correct the check sum, as a producer does who means what is written."""
    data[CRC:ATTRIBUTES] = struct.pack(">I", calc_crc32c(bytes(data[ATTRIBUTES:])))


def flip_content(data: bytearray) -> None:
    """What a bad disk does."""
    data[-3] ^= 1


def name_codec_7(data: bytearray) -> None:
    data[ATTRIBUTES + 1] |= 7
    sealed(data)


def lie_about_a_value(data: bytearray) -> None:
    """Make the first value longer than it is; values of these tests begin with `value`."""
    data[data.index(b"value") - 1] += 2
    sealed(data)


def lie_about_the_record(data: bytearray) -> None:
    data[RECORDS] += 2
    sealed(data)


def lie_about_an_offset(data: bytearray) -> None:
    # The first record's offset in its batch, after length, attributes and time.
    data[RECORDS + 3] = 100
    sealed(data)


def claim_a_key_of_gigabytes(data: bytearray) -> None:
    data[RECORDS + 4 : RECORDS + 9] = b"\xfe\xff\xff\xff\x0f"
    sealed(data)


def claim_more_records(data: bytearray) -> None:
    data[RECORDS - 1] += 1
    sealed(data)
