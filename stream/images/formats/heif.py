"""The reader of HEIF: HEIC and AVIF, boxes within boxes that describe items.

ISO/IEC 23008-12 and 14496-12 (MIAF). Sizes are read before a decoder is; items of metadata, colour
profiles and image sequences get names that decoders skip, in place, so that no offset changes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.errors import RejectInputError
from stream.images.formats.container import (
    MAX_PARTS,
    MAX_PROFILE_BYTES,
    Container,
    check_parts,
    cut_short,
    damaged_header,
)

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_AVIF_BRANDS = (b"avif", b"avis")
# Of an image sequence the still picture counts.
_STILL_BRANDS = {b"avis": b"avif", b"hevc": b"heic", b"hevx": b"heix", b"msf1": b"mif1"}
_METADATA_ITEMS = (b"Exif", b"mime", b"uri ")
_SKIPPED = b"skip"
_SKIPPED_PROPERTY = b"xcol"
_PROFILE_TYPES = (b"prof", b"rICC")

# Memory to decode: the picture at half colour resolution, and 3 bytes a pixel. As measured.
_HEIC_BYTES_PER_PIXEL = 4.6
# Memory to decode: as above, the bytes that libavif gives, and Pillow's picture. As measured.
_AVIF_BYTES_PER_PIXEL = 9


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a box lies: its name, and the first and last position of its content."""

    name: bytes
    at: int
    start: int
    end: int
    cut: bool
    """Whether the file ends before the box should."""


def heif_kind(data: bytes) -> str | None:
    """Return HEIF or AVIF as the file's brands say; None for other files of boxes, and no boxes."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4]), len(data), 4096)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIC_BRANDS:
            return "HEIF"
    return None


def read_heif(data: bytes) -> Container:
    """Return the container of a HEIC's or AVIF's primary picture."""
    kind = heif_kind(data) or "HEIF"
    name = "HEIC" if kind == "HEIF" else kind
    patched = bytearray(data)
    top = list(_boxes(data, 0, len(data)))
    _hide_sequence(data, top, patched)
    meta = next((box for box in top if box.name == b"meta"), None)
    if meta is None:
        raise _without_meta(name, top)
    within = {box.name: box for box in reversed(list(_boxes(data, meta.start + 4, meta.end)))}
    _hide_metadata(data, within.get(b"iinf"), patched)
    properties = _properties(data, within.get(b"iprp"))
    sizes = [size for box in properties if (size := _size(data, box)) is not None]
    if not sizes:
        raise damaged_header(name, "no size in it")
    for box in properties:
        if _is_profile(data, box):
            patched[box.at + 4 : box.at + 8] = _SKIPPED_PROPERTY
    return Container(
        kind=kind,
        pixels=bytes(patched),
        size=max(sizes, key=lambda size: size[0] * size[1]),
        profile=_profile(data, within, properties),
        bytes_per_pixel=_HEIC_BYTES_PER_PIXEL if kind == "HEIF" else _AVIF_BYTES_PER_PIXEL,
        complete=not any(box.cut for box in top),
    )


def _boxes(data: bytes, position: int, end: int) -> Iterator[_Box]:
    """The boxes from a position on, up to one more than is allowed; one that is cut is the last."""
    for part in range(MAX_PARTS + 1):
        check_parts("HEIF", part + 1)
        if position + 8 > end:
            return
        length, start = int.from_bytes(data[position : position + 4]), position + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8]), start + 8
        if length == 0:
            length = end - position
        name = data[position + 4 : position + 8]
        if position + length < start:
            return
        yield _Box(name, position, start, min(position + length, end), position + length > end)
        position += length


def _without_meta(name: str, top: list[_Box]) -> RejectInputError:
    if any(box.name == b"moov" for box in top):
        return RejectInputError(
            "unsupported-format",
            f"the {name} must hold a still picture, got a sequence only; "
            "send the frame that counts",
        )
    if not top or top[-1].cut or top[-1].name == b"ftyp":
        return cut_short(name, "no description of its items")
    return damaged_header(name, "no description of its items")


def _hide_sequence(data: bytes, top: list[_Box], patched: bytearray) -> None:
    """Turn a sequence beside a still picture into room, and the brands into those of stills."""
    for box in top:
        if box.name == b"moov":
            patched[box.at + 4 : box.at + 8] = b"free"
        if box.name == b"ftyp":
            for at in [box.start, *range(box.start + 8, box.end - 3, 4)]:
                brand = data[at : at + 4]
                patched[at : at + 4] = _STILL_BRANDS.get(brand, brand)


def _hide_metadata(data: bytes, items: _Box | None, patched: bytearray) -> None:
    """Give items of metadata a type that decoders do not know."""
    if items is None:
        return
    version = data[items.start]
    for box in _boxes(data, items.start + (6 if version == 0 else 8), items.end):
        at = box.start + (8 if data[box.start : box.start + 1] == b"\2" else 10)
        if box.name == b"infe" and data[at : at + 4] in _METADATA_ITEMS:
            patched[at : at + 4] = _SKIPPED


def _properties(data: bytes, box: _Box | None) -> list[_Box]:
    """The properties in their order; items name them by their number."""
    if box is None:
        return []
    for inner in _boxes(data, box.start, box.end):
        if inner.name == b"ipco":
            return list(_boxes(data, inner.start, inner.end))
    return []


def _size(data: bytes, box: _Box) -> tuple[int, int] | None:
    """Width and height of a property of that kind."""
    if box.name != b"ispe" or box.end - box.start < 12:
        return None
    width, height = struct.unpack_from(">II", data, box.start + 4)
    return width, height


def _is_profile(data: bytes, box: _Box) -> bool:
    """Whether a property is an ICC profile, or a colour too short to be any."""
    if box.name != b"colr":
        return False
    kind = data[box.start : min(box.start + 4, box.end)]
    return kind in _PROFILE_TYPES or box.end - box.start < 11


def _profile(data: bytes, within: dict[bytes, _Box], properties: list[_Box]) -> bytes | None:
    """The ICC profile of the primary item."""
    for number in _primary_properties(data, within):
        if not 1 <= number <= len(properties):
            continue
        box = properties[number - 1]
        if _is_profile(data, box) and box.end - box.start > 4:
            return data[box.start + 4 : min(box.end, box.start + 4 + MAX_PROFILE_BYTES)]
    return None


def _primary_properties(data: bytes, within: dict[bytes, _Box]) -> list[int]:
    """The numbers, from 1 on, of the primary item's properties; none where they cannot be read."""
    primary, descriptions = within.get(b"pitm"), within.get(b"iprp")
    if primary is None or descriptions is None:
        return []
    item_bytes = 2 if data[primary.start] == 0 else 4
    item = data[primary.start + 4 : primary.start + 4 + item_bytes]
    numbers: list[int] = []
    for box in _boxes(data, descriptions.start, descriptions.end):
        if box.name == b"ipma":
            numbers += _associated(data[box.start : box.end], int.from_bytes(item))
    return numbers


def _associated(content: bytes, wanted: int) -> list[int]:
    """The numbers of an item's properties in one box of associations."""
    item_bytes = 2 if content[:1] == b"\0" else 4
    number_bytes = 2 if content[3:4] and content[3] & 1 else 1
    count = int.from_bytes(content[4:8])
    position = 8
    for _ in range(min(count, MAX_PARTS)):
        item = int.from_bytes(content[position : position + item_bytes])
        position += item_bytes
        if position >= len(content):
            break
        numbers = content[position + 1 : position + 1 + content[position] * number_bytes]
        position += 1 + len(numbers)
        if item == wanted:
            # The highest bit says whether a reader must understand the property.
            mask = 0x7FFF if number_bytes == 2 else 0x7F
            steps = range(0, len(numbers), number_bytes)
            return [int.from_bytes(numbers[at : at + number_bytes]) & mask for at in steps]
    return []
