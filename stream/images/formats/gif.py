"""The reader of GIF: the first frame; comments, later frames and program extensions are dropped.

CompuServe's GIF89a specification, sections 17 to 27; colour profiles as in ICC's `ICCRGBG1`.
"""

import struct

from stream.images.formats.container import (
    MAX_PARTS,
    MAX_PROFILE_BYTES,
    Container,
    check_parts,
    cut_short,
    damaged,
    damaged_header,
)

SIGNATURES = (b"GIF87a", b"GIF89a")
_HEAD_BYTES = 13
_FRAME_HEAD_BYTES = 10
_EXTENSION = 0x21
_FRAME = 0x2C
_TRAILER = 0x3B
_GRAPHIC_CONTROL = 0xF9
_APPLICATION = 0xFF
_PROFILE_NAME = b"ICCRGBG1012"
# One byte a pixel for the picture, one for what the decoder puts aside.
_BYTES_PER_PIXEL = 2


def read_gif(data: bytes) -> Container:
    """Return the container of a GIF's first frame."""
    if len(data) < _HEAD_BYTES:
        raise damaged_header("GIF", "a short screen descriptor")
    position = _HEAD_BYTES + _table_bytes(data[10])
    head = b"GIF89a" + data[6:position]
    control = b""
    profile: bytes | None = None
    for part in range(MAX_PARTS + 1):
        check_parts("GIF", part + 1)
        mark = data[position : position + 1]
        if mark == bytes([_FRAME]):
            break
        if mark != bytes([_EXTENSION]):
            raise damaged("GIF", "no frame in it") if mark else cut_short("GIF", "no frame yet")
        label = data[position + 1 : position + 2]
        end, content = _blocks(data, position + 2)
        if label == bytes([_GRAPHIC_CONTROL]) and end - position == 8:
            control = data[position:end]
        elif label == bytes([_APPLICATION]) and content.startswith(_PROFILE_NAME):
            profile = content[len(_PROFILE_NAME) :][:MAX_PROFILE_BYTES]
        position = end
    frame, size = _frame(data, position)
    screen = struct.unpack_from("<HH", data, 6)
    return Container(
        kind="GIF",
        pixels=head + control + frame + bytes([_TRAILER]),
        size=(max(screen[0], size[0]), max(screen[1], size[1])),
        profile=profile,
        bytes_per_pixel=_BYTES_PER_PIXEL,
    )


def _table_bytes(flags: int) -> int:
    """Bytes of the colour table that flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _frame(data: bytes, start: int) -> tuple[bytes, tuple[int, int]]:
    """Return a frame's bytes, and how far right and down it reaches."""
    if len(data) < start + _FRAME_HEAD_BYTES:
        raise cut_short("GIF", "a short frame descriptor")
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, start + 1)
    pixels = start + _FRAME_HEAD_BYTES + _table_bytes(flags) + 1
    end, _ = _blocks(data, pixels)
    return data[start:end], (left + width, top + height)


def _blocks(data: bytes, position: int) -> tuple[int, bytes]:
    """Return the position behind a chain of sub-blocks, and their content."""
    contents: list[bytes] = []
    while position < len(data) and data[position]:
        length = data[position]
        contents.append(data[position + 1 : position + 1 + length])
        position += 1 + length
    return min(position + 1, len(data)), b"".join(contents)
