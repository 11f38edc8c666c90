"""The reader of WebP: the picture and its transparency; all other chunks are dropped.

RFC 9649 section 2.
"""

import struct
from collections.abc import Iterator

from stream.images.formats.container import (
    MAX_PARTS,
    MAX_PROFILE_BYTES,
    Container,
    animated,
    check_parts,
    cut_short,
    damaged,
    damaged_header,
)
from stream.images.formats.exif import exif_orientation

# Memory to decode a WebP: two canvases in libwebp, its answer and the picture, 4 bytes each.
_BYTES_PER_PIXEL = 16

_HEAD_BYTES = 12
_FRAME_HEAD_BYTES = 16
# Sides in the chunks `VP8 ` and `VP8L` have 14 bits.
_SIZE_MASK = 0x3FFF
_ALPHA_FLAG = 0x10


def is_webp(data: bytes) -> bool:
    """Whether the first bytes are those of a WebP."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> Container:
    """Return the container of a WebP with one frame."""
    chunks: dict[bytes, bytes] = {}
    frames: list[bytes] = []
    parts = 0
    for name, content in _chunks(data, _HEAD_BYTES):
        parts += 1
        chunks.setdefault(name, content)
        if name == b"ANMF":
            frames.append(content)
    check_parts("WEBP", parts)
    if len(frames) > 1:
        raise animated()
    picture = dict(_chunks(frames[0], _FRAME_HEAD_BYTES)) if frames else chunks
    declared = _canvas(chunks.get(b"VP8X"))
    pixels, size = _still(picture, declared)
    return Container(
        kind="WEBP",
        pixels=pixels,
        # Both count: a decoder that trusts the wrong one would take its memory.
        size=max(size, declared, key=lambda side: side[0] * side[1]),
        orientation=exif_orientation(chunks.get(b"EXIF", b"")),
        profile=chunks.get(b"ICCP", b"")[:MAX_PROFILE_BYTES] or None,
        bytes_per_pixel=_BYTES_PER_PIXEL,
    )


def _chunks(data: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk, up to one more than is allowed."""
    for _ in range(MAX_PARTS + 1):
        if position + 8 > len(data):
            return
        (length,) = struct.unpack_from("<I", data, position + 4)
        content = data[position + 8 : position + 8 + length]
        name = data[position : position + 4]
        # A picture that is cut; of metadata the rest may be missing.
        if len(content) < length and name in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            raise cut_short("WEBP", "pixels are missing")
        yield name, content
        position += 8 + length + length % 2


def _canvas(extended: bytes | None) -> tuple[int, int]:
    if extended is None:
        return 0, 0
    if len(extended) < 10:
        raise damaged_header("WEBP", "a short VP8X chunk")
    width = 1 + int.from_bytes(extended[4:7], "little")
    height = 1 + int.from_bytes(extended[7:10], "little")
    return width, height


def _still(picture: dict[bytes, bytes], declared: tuple[int, int]) -> tuple[bytes, tuple[int, int]]:
    """Return a WebP with the picture alone, and its size."""
    for name in (b"VP8 ", b"VP8L"):
        if name in picture:
            size = _lossy_size(picture[name]) if name == b"VP8 " else _lossless_size(picture[name])
            chunks = [_chunk(name, picture[name])]
            if b"ALPH" in picture and name == b"VP8 " and min(size) > 0:
                chunks = [_alpha_head(size), _chunk(b"ALPH", picture[b"ALPH"]), *chunks]
            body = b"WEBP" + b"".join(chunks)
            return b"RIFF" + struct.pack("<I", len(body)) + body, size
    if min(declared) > 0:
        # The declared size decides before its absence does.
        return b"", declared
    raise damaged_header("WEBP", "no picture in it")


def _lossy_size(head: bytes) -> tuple[int, int]:
    if len(head) < 10:
        raise damaged_header("WEBP", "a short VP8 chunk")
    width, height = struct.unpack_from("<HH", head, 6)
    return width & _SIZE_MASK, height & _SIZE_MASK


def _lossless_size(head: bytes) -> tuple[int, int]:
    if len(head) < 5:
        raise damaged_header("WEBP", "a short VP8L chunk")
    if head[0] != 0x2F:
        raise damaged("WEBP", "a VP8L chunk without its signature")
    bits = int.from_bytes(head[1:5], "little")
    return 1 + (bits & _SIZE_MASK), 1 + (bits >> 14 & _SIZE_MASK)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _alpha_head(size: tuple[int, int]) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    return _chunk(b"VP8X", bytes([_ALPHA_FLAG, 0, 0, 0]) + sides)
