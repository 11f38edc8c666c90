"""Codecs of Kafka's record batches, bounded in what they unpack.

A producer chooses the codec. A few kilobytes can unpack to gigabytes, and a process that dies of
them meets them again when it is started; so more than `MAX_UNPACKED_BYTES` is an error.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame
import snappy
import zstandard
from kafka.errors import UnsupportedCodecError

# Most bytes of one batch. A broker takes a megabyte packed, and text packs ten to one.
MAX_UNPACKED_BYTES = 64 * 2**20

# `wbits` of zlib for gzip's header and checksum.
_GZIP = 31

# How the snappy of Java begins its stream of blocks; version and compatibility follow.
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16

# Bytes of the length before each block of it.
_BLOCK_LENGTH = struct.Struct(">i")


def unpack(codec: int, packed: bytes) -> bytes:
    """Unpack the records of a batch; `codec` is the number in its attributes.

    `UnsupportedCodecError`, `ValueError`, or an error of the codec's library.
    """
    if codec not in _CODECS:
        raise UnsupportedCodecError(
            f"the codec must be one of {sorted(_CODECS)} (gzip, snappy, lz4, zstd), got {codec}"
        )
    return _CODECS[codec](packed)


def _unpack_frames(new_stream: Callable[[], Any], packed: bytes) -> bytes:
    """Unpack with streams in the manner of zlib, one for each frame."""
    unpacked = bytearray()
    while packed:
        stream = new_stream()
        unpacked += stream.decompress(packed, MAX_UNPACKED_BYTES + 1 - len(unpacked))
        _require_bounded(len(unpacked))
        if not stream.eof:
            raise ValueError(f"the packed data ends early, after {len(unpacked)} bytes")
        packed = stream.unused_data
    return bytes(unpacked)


def _unpack_gzip(packed: bytes) -> bytes:
    return _unpack_frames(lambda: zlib.decompressobj(_GZIP), packed)


def _unpack_lz4(packed: bytes) -> bytes:
    return _unpack_frames(lz4.frame.LZ4FrameDecompressor, packed)


def _unpack_zstd(packed: bytes) -> bytes:
    # Java writes frames that do not tell their size, so only a stream can be bounded.
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True)
    with stream as reader:
        unpacked: bytes = reader.read(MAX_UNPACKED_BYTES + 1)
    _require_bounded(len(unpacked))
    return unpacked


def _unpack_snappy(packed: bytes) -> bytes:
    """Unpack one block, as librdkafka writes it, or the stream of blocks that Java writes."""
    unpacked = bytearray()
    for block in _snappy_blocks(packed):
        # Before unpacking, which allocates what the block declares.
        _require_bounded(len(unpacked) + _declared_bytes(block))
        unpacked += snappy.decompress(block)
    return bytes(unpacked)


def _snappy_blocks(packed: bytes) -> list[bytes]:
    if not packed.startswith(_XERIAL_MAGIC):
        return [packed]
    blocks = []
    position = _XERIAL_HEADER_BYTES
    while position < len(packed):
        (length,) = _BLOCK_LENGTH.unpack_from(packed, position)
        position += _BLOCK_LENGTH.size
        if length <= 0 or position + length > len(packed):
            raise ValueError(f"a snappy block must end inside its batch, got {length} bytes")
        blocks.append(packed[position : position + length])
        position += length
    return blocks


def _declared_bytes(block: bytes) -> int:
    """The length at the begin of a snappy block: seven bits a byte, the lowest first."""
    declared = 0
    for number, byte in enumerate(block[:5]):
        declared |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:
            break
    return declared


def _require_bounded(unpacked: int) -> None:
    if unpacked > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"a batch must have at most {MAX_UNPACKED_BYTES:,} bytes when it is unpacked, got more"
        )


# The numbers are those of https://kafka.apache.org/documentation/#recordbatch.
_CODECS: dict[int, Callable[[bytes], bytes]] = {
    1: _unpack_gzip,
    2: _unpack_snappy,
    3: _unpack_lz4,
    4: _unpack_zstd,
}
