"""The reader of BMP: its header says where pixels, palette and profile lie.

Microsoft's BITMAPFILEHEADER, BITMAPCOREHEADER, BITMAPINFOHEADER and BITMAPV5HEADER.
"""

import struct

from schemas.errors import RejectInputError
from stream.images.formats.container import (
    MAX_PROFILE_BYTES,
    Container,
    cut_short,
    damaged,
    damaged_header,
)

_FILE_HEAD_BYTES = 14
_CORE_HEAD_BYTES = 12
_V5_HEAD_BYTES = 124
_HEAD_BYTES = (_CORE_HEAD_BYTES, 40, 52, 56, 64, 108, _V5_HEAD_BYTES)
_COMPRESSIONS = {0: "none", 1: "RLE8", 2: "RLE4", 3: "bit fields", 6: "bit fields with alpha"}
# The picture; of run lengths the unpacked lines, their copy and the picture, a byte each.
_BYTES_PER_PIXEL = 4


def is_bmp(data: bytes) -> bool:
    """Whether the first bytes are those of a BMP: two letters alone would be a guess."""
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _HEAD_BYTES


def read_bmp(data: bytes) -> Container:
    """Return the container of a BMP; negative heights, lines from the top, are told as positive."""
    head_bytes = int.from_bytes(data[14:18], "little")
    if len(data) < _FILE_HEAD_BYTES + head_bytes:
        raise damaged_header("BMP", "a short header")
    if head_bytes == _CORE_HEAD_BYTES:
        width, height = struct.unpack_from("<HH", data, 18)
        compression = 0
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        (compression,) = struct.unpack_from("<I", data, 30)
    if width <= 0 or height == 0:
        raise damaged("BMP", f"a size of {width:,} x {height:,}")
    if compression not in _COMPRESSIONS:
        raise RejectInputError(
            "unsupported-format",
            f"the BMP must hold its pixels plain or as run lengths, got compression {compression}; "
            "convert it",
        )
    (offset,) = struct.unpack_from("<I", data, 10)
    if offset >= len(data):
        raise cut_short("BMP", "no pixels")
    return Container(
        kind="BMP",
        pixels=data,
        size=(width, abs(height)),
        profile=_profile(data) if head_bytes == _V5_HEAD_BYTES else None,
        bytes_per_pixel=_BYTES_PER_PIXEL,
    )


def _profile(data: bytes) -> bytes | None:
    """The profile that a version 5 header says is embedded."""
    head = data[_FILE_HEAD_BYTES:]
    offset, length = struct.unpack_from("<II", head, 112)
    if head[56:60] != b"DEBM" or length > MAX_PROFILE_BYTES:
        return None
    return head[offset : offset + length] or None
