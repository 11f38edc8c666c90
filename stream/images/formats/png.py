"""The reader of PNG: header, palette, transparency and pixels; all other chunks are dropped.

PNG specification, third edition, sections 5 and 11.
"""

import struct
import zlib
from collections.abc import Iterator

from schemas.errors import RejectInputError
from stream.images.formats.container import (
    MAX_PARTS,
    MAX_PROFILE_BYTES,
    Container,
    animated,
    check_parts,
    damaged,
    damaged_header,
)
from stream.images.formats.exif import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bytes: length, name and checksum of a chunk.
_CHUNK_OVERHEAD = 12
_HEADER_BYTES = 13
_END = b"\0\0\0\0IEND\xaeB`\x82"

_GREY = 0
_COLOUR = 2
_PALETTE = 3
# By colour type: a grey value, a colour. A palette has one byte an entry, 256 at most.
_TRANSPARENCY_BYTES = {_GREY: 2, _COLOUR: 6}


def read_png(data: bytes) -> Container:
    """Return the container of a PNG; its own end is put where the file's is missing."""
    kept = [SIGNATURE]
    named: dict[bytes, bytes] = {}
    parts = 0
    for name, content, chunk in _chunks(data):
        parts += 1
        if name == b"CgBI":
            raise RejectInputError(
                "unsupported-format", "the image must be a plain PNG, got one for iOS; convert it"
            )
        if name == b"IDAT" and len(chunk) < len(content) + _CHUNK_OVERHEAD:
            # Closed, so that the end is not taken for pixels; the decoder tells whether any miss.
            kept.append(_closed(name, content))
        elif name in (b"IHDR", b"PLTE", b"IDAT") or (name == b"tRNS" and _is_sound(chunk)):
            kept.append(chunk)
        named.setdefault(name, content)
    check_parts("PNG", parts)
    header = named.get(b"IHDR", b"")
    if len(header) != _HEADER_BYTES:
        raise damaged_header("PNG", "no header chunk")
    if not _is_sound(kept[1]):
        raise damaged_header("PNG", "its checksum does not match")
    width, height = struct.unpack_from(">II", header)
    if not width or not height:
        raise damaged_header("PNG", f"a size of {width:,} x {height:,}")
    if header[9] == _PALETTE and b"PLTE" not in named:
        raise damaged("PNG", "its palette is missing")
    if _is_animated(named.get(b"acTL", b"")):
        raise animated()
    kept = [chunk for chunk in kept if chunk[4:8] != b"tRNS" or _fits(chunk, header)]
    return Container(
        kind="PNG",
        pixels=b"".join([*kept, _END]),
        size=(width, height),
        bytes_per_pixel=_bytes_per_pixel(depth=header[8], colour_type=header[9]),
        orientation=exif_orientation(named.get(b"eXIf", b"")),
        profile=_profile(named.get(b"iCCP", b"")),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, content and all bytes of every chunk, up to one more than is allowed."""
    position = len(SIGNATURE)
    for _ in range(MAX_PARTS + 1):
        if position + 8 > len(data):
            return
        length = int.from_bytes(data[position : position + 4])
        name = data[position + 4 : position + 8]
        if name == b"IEND":
            return
        end = position + _CHUNK_OVERHEAD + length
        yield name, data[position + 8 : min(end - 4, len(data))], data[position:end]
        position = end


def _closed(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _is_sound(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _fits(chunk: bytes, header: bytes) -> bool:
    """Whether a chunk of transparency is as long as the colour type wants it."""
    length = len(chunk) - _CHUNK_OVERHEAD
    colour_type = header[9]
    if colour_type == _PALETTE:
        return 0 < length <= 256
    return length == _TRANSPARENCY_BYTES.get(colour_type)


def _bytes_per_pixel(*, depth: int, colour_type: int) -> int:
    """Memory of a decoded picture: grey and palettes take little, all others 4 bytes a pixel."""
    if colour_type == _PALETTE:
        return 1
    return max(1, depth // 8) if colour_type == _GREY else 4


def _is_animated(control: bytes) -> bool:
    return len(control) == 8 and int.from_bytes(control[:4]) > 1


def _profile(content: bytes) -> bytes | None:
    """Unpack an ICC profile; None where it cannot be unpacked, or would take too much memory."""
    name, _, packed = content.partition(b"\0")
    if not name or packed[:1] != b"\0":
        return None
    try:
        return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES) or None
    except zlib.error:
        return None
