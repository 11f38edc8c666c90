"""Fuzzed images: real files of eight formats with bytes, parts and sizes changed."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

# Pixels of a seed: small, so that most of its bytes matter, and with all that a decoder does.
_SIZE = (72, 48)

# Pixels of extreme shapes.
_LONG_PX = 20_000

# Bytes that a packed text unpacks to.
_BOMB_BYTES = 50_000_000

# Most changes of one file.
_CHANGES = 3

# Values that lengths and sizes are set to.
_WIDE = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a file."""

    kind: str
    place: float
    """Share of the file, from 0 to 1."""
    end: float
    """The same, of a span's end."""
    number: int
    """An index into what the kind chooses from."""
    noise: bytes


def fuzzed_images(count: int, number: int, more_seeds: Path | None = None) -> list[bytes]:
    """Make `count` files from seed `number`; `more_seeds` is a folder of further files."""
    originals = [*_seeds().values()]
    if more_seeds is not None:
        originals += [file.read_bytes() for file in sorted(more_seeds.iterdir())]
    made: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(originals) - 1), st.lists(_changes(), max_size=_CHANGES))
    def collect(chosen: int, changes: list[_Change]) -> None:
        # By turns: every seed is used, whatever is drawn.
        data = originals[(chosen + len(made)) % len(originals)]
        for change in changes:
            data = _changed(data, change, originals)
        made.append(data)

    collect()
    return made[:count]


def _changes() -> SearchStrategy[_Change]:
    return st.builds(
        _Change,
        st.sampled_from(sorted(_CHANGERS)),
        st.floats(0, 1),
        st.floats(0, 1),
        st.integers(0, 2**16),
        st.binary(min_size=1, max_size=8),
    )


def _changed(data: bytes, change: _Change, originals: Sequence[bytes]) -> bytes:
    other = originals[change.number % len(originals)]
    return _CHANGERS[change.kind](data, change, other)


def _span(data: bytes, change: _Change) -> tuple[int, int]:
    first = int(change.place * len(data))
    last = int(change.end * len(data))
    return min(first, last), max(first, last)


def _flip(data: bytes, change: _Change, other: bytes) -> bytes:
    flipped = bytearray(data)
    # A step of its own, so that flips are spread over the file.
    step = 1 + change.number % 997
    for turn, byte in enumerate(change.noise):
        if flipped:
            flipped[(int(change.place * len(data)) + turn * step) % len(flipped)] ^= byte or 1
    return bytes(flipped)


def _flip_in_head(data: bytes, change: _Change, other: bytes) -> bytes:
    head = data[:64]
    return _flip(head, change, other) + data[64:]


def _cut(data: bytes, change: _Change, other: bytes) -> bytes:
    return data[: int(change.place * len(data))]


def _cut_end(data: bytes, change: _Change, other: bytes) -> bytes:
    return data[: -1 - change.number % 40]


def _drop(data: bytes, change: _Change, other: bytes) -> bytes:
    begin, end = _span(data, change)
    return data[:begin] + data[end:]


def _repeat(data: bytes, change: _Change, other: bytes) -> bytes:
    begin, end = _span(data, change)
    return data[:end] + data[begin:end] * (1 + change.number % 4) + data[end:]


def _insert(data: bytes, change: _Change, other: bytes) -> bytes:
    begin, _ = _span(data, change)
    return data[:begin] + change.noise * (1 + change.number % 500) + data[begin:]


def _zero(data: bytes, change: _Change, other: bytes) -> bytes:
    begin, end = _span(data, change)
    return data[:begin] + bytes(end - begin) + data[end:]


def _splice(data: bytes, change: _Change, other: bytes) -> bytes:
    """The begin of one file and the end of another."""
    return data[: int(change.place * len(data))] + other[int(change.end * len(other)) :]


def _widen(data: bytes, change: _Change, other: bytes) -> bytes:
    """A length, an offset or a size that is another one, in either order of bytes."""
    value = _WIDE[change.number % len(_WIDE)]
    order = "<I" if change.noise[0] % 2 else ">I"
    begin, _ = _span(data, change)
    return data[:begin] + struct.pack(order, value) + data[begin + 4 :]


def _widen_in_head(data: bytes, change: _Change, other: bytes) -> bytes:
    return _widen(data[:256], change, other) + data[256:]


def _part(data: bytes, change: _Change, other: bytes) -> bytes:
    """A part of metadata, right behind the head of a PNG or JPEG, or anywhere in others."""
    if data.startswith(b"\x89PNG"):
        name = _PNG_NAMES[change.number % len(_PNG_NAMES)]
        content = change.noise * (change.number % 300)
        if change.number % 7 == 0:
            content = b"key\0\0" + zlib.compress(bytes(_BOMB_BYTES))
        return data[:33] + _chunk(name, content) + data[33:]
    if data.startswith(b"\xff\xd8"):
        content = _JPEG_HEADS[change.number % len(_JPEG_HEADS)] + change.noise * 5
        size = struct.pack(">H", (len(content) + 2 + change.number % 3) % 65_536)
        marker = bytes([0xFF, 0xE0 + change.number % 32])
        return data[:2] + marker + size + content + data[2:]
    return _insert(data, change, other)


def _shuffle(data: bytes, change: _Change, other: bytes) -> bytes:
    """Two neighbouring spans, swapped."""
    begin, end = _span(data, change)
    middle = (begin + end) // 2
    return data[:begin] + data[middle:end] + data[begin:middle] + data[end:]


Changer = Callable[[bytes, _Change, bytes], bytes]

_CHANGERS: Mapping[str, Changer] = {
    "flip": _flip,
    "flip in the head": _flip_in_head,
    "cut": _cut,
    "cut the end": _cut_end,
    "drop": _drop,
    "repeat": _repeat,
    "insert": _insert,
    "zero": _zero,
    "splice": _splice,
    "widen": _widen,
    "widen in the head": _widen_in_head,
    "part": _part,
    "shuffle": _shuffle,
}

_PNG_NAMES = (
    *(b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"pHYs", b"eXIf", b"tRNS"),
    *(b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"IHDR", b"prIV"),
)

_JPEG_HEADS = (
    *(b"", b"Exif\0\0II*\0\x08\0\0\0", b"ICC_PROFILE\0\1\1", b"JFIF\0", b"Adobe"),
    *(b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0", b"Photoshop 3.0\x008BIM"),
)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _picture(number: int, size: tuple[int, int] = _SIZE) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _heic(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=80)
    return buffer.getvalue()


def _frames(kind: str) -> bytes:
    return _encoded(_picture(1), kind, save_all=True, append_images=[_picture(2), _picture(3)])


def _seeds() -> dict[str, bytes]:
    """One good file of each format and mode, and shapes that are refused."""
    image = _picture(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = np.arange(_SIZE[0] * _SIZE[1]).reshape(_SIZE[1], _SIZE[0]) * 19
    return {
        "png": _encoded(image, "PNG"),
        "palette.png": _encoded(image.quantize(16), "PNG", transparency=3),
        "alpha.png": _encoded(image.convert("RGBA"), "PNG"),
        "grey.png": _encoded(image.convert("L"), "PNG"),
        "one-bit.png": _encoded(image.convert("1"), "PNG"),
        "sixteen.png": _encoded(Image.fromarray(wide.astype(np.uint16)), "PNG"),
        "frames.png": _frames("PNG"),
        "jpg": _encoded(image, "JPEG", exif=turned),
        "progressive.jpg": _encoded(image, "JPEG", progressive=True),
        "restarts.jpg": _encoded(image, "JPEG", restart_marker_rows=1),
        "ink.jpg": _encoded(image.convert("CMYK"), "JPEG"),
        "grey.jpg": _encoded(image.convert("L"), "JPEG"),
        "webp": _encoded(image, "WEBP"),
        "lossless.webp": _encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "frames.webp": _frames("WEBP"),
        "gif": _encoded(image.quantize(64), "GIF"),
        "frames.gif": _frames("GIF"),
        "bmp": _encoded(image, "BMP"),
        "palette.bmp": _encoded(image.quantize(16), "BMP"),
        "tiff": _encoded(image, "TIFF"),
        "packed.tiff": _encoded(image, "TIFF", compression="tiff_lzw"),
        "deflated.tiff": _encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "fax.tiff": _encoded(image.convert("1"), "TIFF", compression="group4"),
        "jpeg.tiff": _encoded(image, "TIFF", compression="jpeg"),
        "pages.tiff": _frames("TIFF"),
        "heic": _heic(image),
        "alpha.heic": _heic(image.convert("RGBA")),
        "avif": _encoded(image, "AVIF"),
        "frames.avif": _frames("AVIF"),
        "long.png": _encoded(Image.new("RGB", (_LONG_PX, 1)), "PNG"),
        "tall.jpg": _encoded(Image.new("RGB", (8, 2000)), "JPEG"),
        "at-the-limit.png": _encoded(Image.new("RGB", (1200, 12)), "PNG"),
        "flat.png": _encoded(Image.new("RGB", (6000, 6000)), "PNG"),
    }
