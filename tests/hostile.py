"""Good and bad image files, made when needed: a folder as hostile as a stream can be."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageCms


def picture(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Bytes of an image file."""
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, extra: bytes = b"", after: bytes = b"") -> bytes:
    """An 8-bit RGB PNG with packed `pixels`, and more chunks before and after them."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + extra
        + _chunk(b"IDAT", zlib.compress(pixels))
        + after
        + _chunk(b"IEND", b"")
    )


def huge_png() -> bytes:
    """A PNG that declares 60,000 x 60,000 pixels in a few bytes."""
    return png(60_000, 60_000, bytes(1000))


def bomb(name: bytes) -> bytes:
    """A PNG chunk of 100 KB that unpacks to 100 MB."""
    return _chunk(name, b"x\0\0" + zlib.compress(bytes(100_000_000)))


def bad_checksum() -> bytes:
    """A PNG whose header does not match its checksum."""
    good = encoded(picture(12), "PNG")
    return good[:29] + b"\0\0\0\0" + good[33:]


def wide_jpeg() -> bytes:
    """A JPEG that declares 65,500 x 65,500 pixels."""
    good = encoded(picture(13), "JPEG")
    # Height and width lie five bytes after the start-of-frame marker.
    size_start = good.index(b"\xff\xc0") + 5
    return good[:size_start] + struct.pack(">HH", 65_500, 65_500) + good[size_start + 4 :]


def many_scans() -> bytes:
    """A small progressive JPEG that paints its nine million pixels a thousand times."""
    good = encoded(Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    last_scan = good[good.rindex(b"\xff\xda") : -2]
    return good[:-2] + last_scan * 1000 + b"\xff\xd9"


def filled_jpeg() -> bytes:
    """A JPEG with four million filling bytes."""
    good = encoded(picture(14), "JPEG")
    return good[:2] + b"\xff" * 4_000_000 + good[2:]


def webp(kind: bytes, head: bytes) -> bytes:
    """A WebP of one chunk."""
    return (
        b"RIFF"
        + struct.pack("<I", 12 + len(head))
        + b"WEBP"
        + kind
        + struct.pack("<I", len(head))
        + head
    )


def deep_xml() -> bytes:
    """An SVG whose entities unfold to a billion letters."""
    entities = '<!ENTITY e0 "a">'
    for level in range(1, 10):
        tenfold = f"&e{level - 1};" * 10
        entities += f'<!ENTITY e{level} "{tenfold}">'
    return f'<?xml version="1.0"?><!DOCTYPE svg [{entities}]><svg>&e9;</svg>'.encode()


def sixteen_bit() -> bytes:
    """A 16-bit grey PNG."""
    ramp = np.arange(4800).reshape(60, 80) * 13
    return encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG")


def palette_with_alpha() -> bytes:
    """A palette PNG with a transparent colour."""
    return encoded(picture(3).quantize(16), "PNG", transparency=3)


def rotated() -> bytes:
    """A JPEG whose EXIF says that it lies on its side."""
    orientation_tag = 0x0112
    exif = Image.Exif()
    exif[orientation_tag] = 6
    return encoded(picture(4), "JPEG", exif=exif)


def animated(kind: str) -> bytes:
    """Three frames."""
    frames = [picture(seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def heic(image: Image.Image, **options: object) -> bytes:
    """Bytes of a HEIC."""
    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90, **options)
    return buffer.getvalue()


def with_chunk(good: bytes, chunk: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with one more chunk before the first one of a name."""
    place = good.index(before) - 4
    return good[:place] + chunk + good[place:]


def declaring(good: bytes, name: bytes, width: int, height: int) -> bytes:
    """A HEIC or AVIF whose boxes of that name declare another size."""
    parts = good.split(name)
    size = struct.pack(">III", 0, width, height)
    return parts[0] + b"".join(name + size + part[12:] for part in parts[1:])


def gif_screen(width: int, height: int) -> bytes:
    """A GIF that declares a screen of that size."""
    good = encoded(picture(15), "GIF")
    return good[:6] + struct.pack("<HH", width, height) + good[10:]


def gif_frame(width: int, height: int) -> bytes:
    """A GIF with a small screen and a frame of that size."""
    good = encoded(picture(15), "GIF")
    start = good.rindex(b"\x2c\0\0\0\0\x50\0\x3c\0")
    return good[: start + 5] + struct.pack("<HH", width, height) + good[start + 9 :]


def bmp(width: int, height: int, bits: int = 24, compression: int = 0) -> bytes:
    """A BMP that declares a size, with some bytes of pixels."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + head + bytes(1500)


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF of entries (tag, type, count, value) and some bytes of pixels, in front of them."""
    pixels = bytes(1000)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return head + struct.pack("<H", len(entries)) + table + bytes(4)


def tiff_of(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    """A grey TIFF that declares a size, one strip and more."""
    plain = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1)}
    plain |= {262: (3, 1, 1), 273: (4, 1, 8), 278: (4, 1, height), 279: (4, 1, 1000)}
    plain |= {tag: (kind, count, value) for tag, kind, count, value in more}
    return tiff(*((tag, *entry) for tag, entry in plain.items()))


# By file name, how the bytes are made.
CONVERTIBLE: dict[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: encoded(picture(1), "JPEG"),
    "plain.png": lambda: encoded(picture(2), "PNG"),
    "plain.webp": lambda: encoded(picture(5), "WEBP"),
    "cmyk.jpg": lambda: encoded(picture(6).convert("CMYK"), "JPEG"),
    "sixteen.png": sixteen_bit,
    "palette.png": palette_with_alpha,
    "rotated.jpg": rotated,
    "grey.jpg": lambda: encoded(picture(7).convert("L"), "JPEG"),
    "alpha.png": lambda: encoded(picture(8).convert("RGBA"), "PNG"),
    "one-bit.png": lambda: encoded(picture(9).convert("1"), "PNG"),
    "profile.jpg": lambda: encoded(
        picture(10),
        "JPEG",
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ),
    # Also an archive and a page: only the picture is kept.
    "polyglot.jpg": lambda: (
        encoded(picture(12), "JPEG", comment=b"<script>alert(1)</script>")
        + b"PK\x03\x04"
        + bytes(100)
    ),
    "frames.gif": lambda: animated("GIF"),
    "bitmap.jpg": lambda: encoded(picture(1), "BMP"),
    "scan.tiff": lambda: encoded(picture(1), "TIFF"),
    "pages.tiff": lambda: animated("TIFF"),
    "fax.tiff": lambda: encoded(picture(9).convert("1"), "TIFF", compression="group4"),
    "photo.heic": lambda: heic(picture(1)),
    "photo.avif": lambda: encoded(picture(1), "AVIF"),
    "frames.avif": lambda: animated("AVIF"),
    "text-bomb.png": lambda: with_chunk(encoded(picture(2), "PNG"), bomb(b"zTXt")),
    "late-text-bomb.png": lambda: with_chunk(encoded(picture(2), "PNG"), bomb(b"zTXt"), b"IEND"),
    "profile-bomb.png": lambda: with_chunk(encoded(picture(2), "PNG"), bomb(b"iCCP")),
    "progressive.jpg": lambda: encoded(picture(11), "JPEG", progressive=True),
}

# By file name, the code of the refusal and how the bytes are made.
REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty.jpg": ("empty", lambda: b""),
    "text.jpg": ("not-an-image", lambda: b"this is a shopping list, not a picture\n"),
    "truncated.jpg": ("truncated", lambda: encoded(picture(1, (400, 300)), "JPEG")[:2000]),
    "truncated.png": ("truncated", lambda: encoded(picture(1, (400, 300)), "PNG")[:3000]),
    "truncated.webp": ("truncated", lambda: encoded(picture(1, (400, 300)), "WEBP")[:500]),
    "header-only.png": ("truncated", lambda: b"\x89PNG\r\n\x1a\n"),
    "huge.png": ("too-many-pixels", huge_png),
    "animated.png": ("animated", lambda: animated("PNG")),
    "animated.webp": ("animated", lambda: animated("WEBP")),
    "drawing.svg": ("unsupported-format", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "paper.pdf": ("unsupported-format", lambda: b"%PDF-1.7\n"),
    "zeros.png": ("not-an-image", lambda: bytes(500)),
    "noise.jpg": ("not-an-image", lambda: np.random.default_rng(0).bytes(500)),
    "tall.png": ("too-many-pixels", lambda: png(1, 63_000_000, bytes(4000))),
    "wide.jpg": ("too-many-pixels", wide_jpeg),
    "canvas.webp": ("too-many-pixels", lambda: webp(b"VP8X", bytes(4) + b"\xfe\x3f\0\xfe\x3f\0")),
    "lossy.webp": (
        "too-many-pixels",
        lambda: webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"),
    ),
    "lossless.webp": ("too-many-pixels", lambda: webp(b"VP8L", b"\x2f\xff\xff\xff\x0f")),
    "header-only.webp": ("truncated", lambda: webp(b"VP8X", b"")),
    "pixel-bomb.png": ("truncated", lambda: png(7000, 7000, bytes(140_000_000))),
    "checksum.png": ("truncated", bad_checksum),
    "nothing.png": ("truncated", lambda: png(0, 0, b"")),
    "chunks.png": (
        "too-many-parts",
        lambda: png(1, 1, bytes(4), extra=_chunk(b"prVt", b"") * 200_000),
    ),
    "segments.jpg": ("too-many-parts", lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 500_000),
    "filled.jpg": ("too-many-parts", filled_jpeg),
    "scans.jpg": ("too-many-parts", many_scans),
    "entities.svg": ("unsupported-format", deep_xml),
    "icon.png": ("unsupported-format", lambda: encoded(picture(1, (32, 32)), "ICO")),
    "layers.jpg": ("unsupported-format", lambda: b"8BPS\0\1" + bytes(60)),
    "both.jpg": (
        "decode-failed",
        lambda: b"GIF89a/*" + encoded(picture(1), "JPEG") + b"*/=1;alert(1)",
    ),
    "film.mp4": ("unsupported-format", lambda: b"\0\0\0\x18ftypisom" + bytes(40)),
    "header-only.heic": ("truncated", lambda: b"\0\0\0\x18ftypheic" + bytes(40)),
    "truncated.heic": ("truncated", lambda: heic(picture(1))[:-300]),
    "truncated.avif": ("truncated", lambda: encoded(picture(1), "AVIF")[:-300]),
    "canvas.heic": ("too-many-pixels", lambda: declaring(heic(picture(1)), b"ispe", 60000, 60000)),
    "canvas.avif": (
        "too-many-pixels",
        lambda: declaring(encoded(picture(1), "AVIF"), b"ispe", 1 << 31, 1 << 31),
    ),
    "screen.gif": ("too-many-pixels", lambda: gif_screen(65_535, 65_535)),
    "frame.gif": ("too-many-pixels", lambda: gif_frame(65_535, 65_535)),
    "truncated.gif": ("truncated", lambda: encoded(picture(1, (400, 300)), "GIF")[:9000]),
    "no-frame.gif": ("decode-failed", lambda: b"GIF89a" + b"\x50\0\x3c\0\0\0\0" + b";"),
    "blocks.gif": (
        "too-many-parts",
        lambda: b"GIF89a" + b"\x50\0\x3c\0\0\0\0" + b"\x21\xfe\0" * 100_000,
    ),
    "wide.bmp": ("too-many-pixels", lambda: bmp(60_000, 60_000)),
    "upside-down.bmp": ("too-many-pixels", lambda: bmp(60_000, -60_000)),
    "negative.bmp": ("decode-failed", lambda: bmp(-80, 60)),
    "nothing.bmp": ("decode-failed", lambda: bmp(0, 0)),
    "truncated.bmp": ("truncated", lambda: encoded(picture(1), "BMP")[:5000]),
    "runs.bmp": ("too-many-pixels", lambda: bmp(65_000, 65_000, bits=8, compression=1)),
    "inner.bmp": ("unsupported-format", lambda: bmp(80, 60, compression=5)),
    "large.tiff": ("too-many-pixels", lambda: tiff_of(60_000, 60_000)),
    "strips.tiff": ("too-many-parts", lambda: tiff_of(80, 60, (273, 4, 1 << 28, 8))),
    "outside.tiff": ("truncated", lambda: tiff_of(80, 60, (273, 4, 60, 1 << 30))),
    "tile.tiff": (
        "out-of-memory",
        lambda: tiff_of(80, 60, (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8)),
    ),
    "samples.tiff": ("decode-failed", lambda: tiff_of(80, 60, (277, 3, 1, 60_000))),
    "lossy.tiff": ("unsupported-format", lambda: tiff_of(80, 60, (259, 3, 1, 6))),
    "raw.tiff": ("unsupported-format", lambda: tiff_of(80, 60, (50706, 1, 4, 0x0401))),
    "truncated.tiff": ("truncated", lambda: encoded(picture(1), "TIFF")[:5000]),
    "line.png": ("aspect-ratio", lambda: encoded(Image.new("RGB", (20_000, 1)), "PNG")),
    "strip.jpg": ("aspect-ratio", lambda: encoded(Image.new("RGB", (2000, 8)), "JPEG")),
    "pole.bmp": ("aspect-ratio", lambda: encoded(Image.new("RGB", (3, 400)), "BMP")),
    "archive.jpg": ("not-an-image", lambda: b"PK\x03\x04" + bytes(100)),
}


def write_folder(folder: Path, good: int) -> tuple[int, dict[str, str]]:
    """Write a folder with `good` images that can be indexed, and one of every bad kind.

    Returns how many are good, and the expected code of each bad file by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in CONVERTIBLE.items():
        (folder / name).write_bytes(make())
    for number in range(max(0, good - len(CONVERTIBLE))):
        (folder / f"more-{number}.jpg").write_bytes(encoded(picture(100 + number), "JPEG"))
    codes = {}
    for name, (code, make_bad) in REFUSED.items():
        (folder / name).write_bytes(make_bad())
        codes[name] = code
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    codes |= {"dangling.jpg": "unreadable", "loop.jpg": "unreadable"}
    return max(good, len(CONVERTIBLE)), codes
