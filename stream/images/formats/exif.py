"""The orientation in EXIF: the only entry of it that changes what a picture shows.

CIPA DC-008 (Exif 2.32) section 4.6.2: EXIF is a small TIFF. Everything else in it may be broken.
"""

import struct

from stream.images.formats.container import UPRIGHT

_PREFIX = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Tag, type, count and value of an entry.
_ENTRY = {"<": struct.Struct("<HHI4s"), ">": struct.Struct(">HHI4s")}
# By type: byte, short and long. Some programs write an orientation as another than a short.
_NUMBER_FORMATS = {1: "B", 3: "H", 4: "I"}


def exif_orientation(exif: bytes) -> int:
    """Return the orientation from 1 to 8; 1 where there is none or it cannot be read."""
    tiff = exif.removeprefix(_PREFIX)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return UPRIGHT
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    entry = _ENTRY[order]
    for position in range(start + 2, start + 2 + count * entry.size, entry.size):
        if position + entry.size > len(tiff):
            break
        tag, kind, _, value = entry.unpack_from(tiff, position)
        if tag == _ORIENTATION_TAG:
            return checked_orientation(order, kind, value)
    return UPRIGHT


def checked_orientation(order: str, kind: int, value: bytes) -> int:
    """Return the orientation that an entry holds; 1 where it holds none."""
    number_format = _NUMBER_FORMATS.get(kind)
    if number_format is None:
        return UPRIGHT
    (orientation,) = struct.unpack_from(order + number_format, value)
    return int(orientation) if 1 <= orientation <= 8 else UPRIGHT
