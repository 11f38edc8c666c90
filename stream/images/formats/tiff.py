"""The reader of TIFF: the first page, with the tags that its pixels need and no others.

TIFF 6.0, sections 2 and 8; BigTIFF's wider offsets. The first directory is written again in its
place, so that no offset changes.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import RejectInputError
from stream.images.formats.container import (
    MAX_PROFILE_BYTES,
    UPRIGHT,
    Container,
    check_parts,
    cut_short,
    damaged,
    damaged_header,
)
from stream.images.formats.exif import checked_orientation

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SUBFILE_TYPE = 254
_WIDTH = 256
_HEIGHT = 257
_BITS = 258
_COMPRESSION = 259
_STRIP_OFFSETS = 273
_SAMPLES = 277
_ROWS_PER_STRIP = 278
_ORIENTATION = 274
_TILE_WIDTH = 322
_TILE_HEIGHT = 323
_TILE_OFFSETS = 324
_PROFILE = 34675
_RAW_VERSION = 50706
_PIXEL_TAGS = frozenset(
    {
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP),
        *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS),
        # Photometry, fill order, strip bytes, planes, fax options, predictor, palette, tile bytes.
        *(262, 266, 279, 284, 292, 293, 317, 320, 325),
        # Inks, extra samples, sample format, JPEG tables, YCbCr and its reference.
        *(332, 338, 339, 347, 529, 530, 531, 532),
    }
)
# None, three of fax, LZW, JPEG, Deflate, PackBits, and Deflate's older number.
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
# By type.
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_MAX_SAMPLES = 8
_PICTURE_BYTES_PER_PIXEL = 4


@dataclass(frozen=True, slots=True)
class _Layout:
    """How wide the numbers of a directory are."""

    order: str
    count: str
    offset: str

    @property
    def offset_bytes(self) -> int:
        return struct.calcsize(self.order + self.offset)

    @property
    def entry_bytes(self) -> int:
        return struct.calcsize(f"{self.order}HH{self.offset}") + self.offset_bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a directory."""

    kind: int
    count: int
    raw: bytes
    value: bytes
    """The value itself, wherever in the file it lies; empty where it lies outside."""


def read_tiff(data: bytes) -> Container:
    """Return the container of a TIFF's first page."""
    layout = _layout(data)
    start = 4 if layout.offset == "I" else 8
    directory = _number(layout.order + layout.offset, data, start)
    entries = _entries(data, layout, directory)
    _check_kind(layout, entries)
    width, height = (_value(layout, entries, tag, 0) for tag in (_WIDTH, _HEIGHT))
    profile = entries[_PROFILE].value[:MAX_PROFILE_BYTES] if _PROFILE in entries else b""
    turned = entries.get(_ORIENTATION)
    return Container(
        kind="TIFF",
        pixels=_pruned(data, layout, directory, entries),
        size=(width, height),
        orientation=checked_orientation(layout.order, turned.kind, turned.value.ljust(4, b"\0"))
        if turned
        else UPRIGHT,
        profile=profile or None,
        bytes_per_pixel=_bytes_per_pixel(layout, entries, width, height),
    )


def _layout(data: bytes) -> _Layout:
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        return _Layout(order, "Q", "Q")
    return _Layout(order, "H", "I")


def _number(number_format: str, data: bytes, position: int) -> int:
    if position + struct.calcsize(number_format) > len(data):
        raise damaged_header("TIFF", "no directory")
    (number,) = struct.unpack_from(number_format, data, position)
    return int(number)


def _entries(data: bytes, layout: _Layout, directory: int) -> dict[int, _Entry]:
    """The entries of a directory by their tag, the first of each."""
    count = _number(layout.order + layout.count, data, directory)
    check_parts("TIFF", count)
    first = directory + struct.calcsize(layout.order + layout.count)
    if first + count * layout.entry_bytes > len(data):
        raise damaged_header("TIFF", "a short directory")
    entries: dict[int, _Entry] = {}
    for number in range(count):
        at = first + number * layout.entry_bytes
        raw = data[at : at + layout.entry_bytes]
        tag, kind, values = struct.unpack_from(f"{layout.order}HH{layout.offset}", raw)
        length = values * _TYPE_BYTES.get(kind, 1)
        value = raw[-layout.offset_bytes :]
        if length > layout.offset_bytes:
            (place,) = struct.unpack(layout.order + layout.offset, value)
            value = data[place : place + length]
        entries.setdefault(tag, _Entry(kind, values, raw, value if len(value) >= length else b""))
    return entries


def _check_kind(layout: _Layout, entries: Mapping[int, _Entry]) -> None:
    """Refuse what is no scan or photo, and decoders that are not on the list."""
    if _RAW_VERSION in entries or _value(layout, entries, _SUBFILE_TYPE, 0) & 1:
        raise RejectInputError(
            "unsupported-format",
            "the TIFF must begin with its picture, got a camera's raw file or a preview; "
            "convert it",
        )
    compression = _value(layout, entries, _COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise RejectInputError(
            "unsupported-format",
            "the TIFF must be compressed by LZW, Deflate, JPEG, PackBits, fax or not at all, "
            f"got compression {compression}; convert it",
        )
    if _value(layout, entries, _SAMPLES, 1) > _MAX_SAMPLES:
        raise damaged("TIFF", f"more than {_MAX_SAMPLES} samples a pixel")
    for tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
        if tag in entries:
            check_parts("TIFF", entries[tag].count)
    for tag in sorted(_PIXEL_TAGS & set(entries)):
        if not entries[tag].value:
            raise cut_short("TIFF", f"tag {tag} lies behind the end")


def _value(layout: _Layout, entries: Mapping[int, _Entry], tag: int, default: int) -> int:
    """The first whole number of an entry."""
    entry = entries.get(tag)
    if entry is None:
        return default
    number_format = layout.order + _WHOLE_NUMBERS.get(entry.kind, "B")
    if entry.kind not in _WHOLE_NUMBERS or len(entry.value) < struct.calcsize(number_format):
        return default
    (number,) = struct.unpack_from(number_format, entry.value)
    return int(number)


def _bytes_per_pixel(
    layout: _Layout, entries: Mapping[int, _Entry], width: int, height: int
) -> float:
    """The picture, and the strip or tile that is unpacked at a time."""
    rows = min(height, _value(layout, entries, _ROWS_PER_STRIP, height))
    part = (width, rows)
    if _TILE_OFFSETS in entries:
        part = (
            _value(layout, entries, _TILE_WIDTH, width),
            _value(layout, entries, _TILE_HEIGHT, height),
        )
    samples = _value(layout, entries, _SAMPLES, 1)
    bits = _value(layout, entries, _BITS, 1)
    part_bytes = part[0] * part[1] * max(4, samples * bits / 8)
    return _PICTURE_BYTES_PER_PIXEL + part_bytes / max(1, width * height)


def _pruned(data: bytes, layout: _Layout, directory: int, entries: Mapping[int, _Entry]) -> bytes:
    """The file with a directory of pixel tags only, and without a next page."""
    kept = [entries[tag].raw for tag in sorted(_PIXEL_TAGS & set(entries))]
    written = struct.pack(layout.order + layout.count, len(kept)) + b"".join(kept)
    # The old directory was at least as long, but for the offset of a next page, which may be cut.
    written += bytes(layout.offset_bytes)
    return data[:directory] + written + data[directory + len(written) :]
