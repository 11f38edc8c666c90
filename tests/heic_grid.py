"""A HEIC as phones write it: tiles of 512 pixels, put together by a grid item.

Encoding fifty megapixels takes a minute; here all tiles are one tile.
"""

import struct

from PIL import Image

from tests.hostile import heic

TILE = 512


def _box(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + name + content


def _full_box(name: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(name, struct.pack(">I", version << 24 | flags), *parts)


def _found(data: bytes, name: bytes) -> bytes:
    """The content of the only box of a name."""
    at = data.index(name)
    return data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at])]


def grid_heic(size: tuple[int, int], colour: tuple[int, int, int], *, turns: int = 0) -> bytes:
    """A picture of one colour; `turns` are quarter turns against the clock that a reader makes."""
    tile = heic(Image.new("RGB", (TILE, TILE), colour))
    pixels = _found(tile, b"mdat")
    columns, rows = (-(-side // TILE) for side in size)
    tiles = range(2, 2 + columns * rows)
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    entries = [_full_box(b"infe", 2, 0, struct.pack(">HH4sx", 1, 0, b"grid"))]
    entries += [_full_box(b"infe", 2, 1, struct.pack(">HH4sx", item, 0, b"hvc1")) for item in tiles]
    properties = [
        _full_box(b"ispe", 0, 0, struct.pack(">II", *size)),
        _full_box(b"ispe", 0, 0, struct.pack(">II", TILE, TILE)),
        _box(b"hvcC", _found(tile, b"hvcC")),
        _box(b"irot", bytes([turns])),
    ]
    associations = struct.pack(">IHBBB", 1 + len(tiles), 1, 2, 1, 0x84)
    associations += b"".join(struct.pack(">HBBB", item, 2, 2, 0x83) for item in tiles)

    def meta(place: int) -> bytes:
        places = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))
        places += b"".join(
            struct.pack(">HHHHII", item, 0, 0, 1, place, len(pixels)) for item in tiles
        )
        return _full_box(
            b"meta",
            0,
            0,
            _full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            _full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
            _full_box(b"iinf", 0, 0, struct.pack(">H", len(entries)), *entries),
            _full_box(
                b"iref",
                0,
                0,
                _box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *tiles)),
            ),
            _box(b"iprp", _box(b"ipco", *properties), _full_box(b"ipma", 0, 0, associations)),
            _full_box(b"iloc", 1, 0, struct.pack(">BBH", 0x44, 0, 1 + len(tiles)), places),
            _box(b"idat", grid),
        )

    head = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    place = len(head) + len(meta(0)) + 8
    return head + meta(place) + _box(b"mdat", pixels)
