"""Good and bad image files, made when needed: a folder as hostile as a stream can be."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
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
    "frames.gif": ("unsupported-format", lambda: animated("GIF")),
    "bitmap.jpg": ("unsupported-format", lambda: encoded(picture(1), "BMP")),
    "scan.tiff": ("unsupported-format", lambda: encoded(picture(1), "TIFF")),
    "drawing.svg": ("unsupported-format", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "paper.pdf": ("unsupported-format", lambda: b"%PDF-1.7\n"),
    "photo.heic": ("unsupported-format", lambda: b"\x00\x00\x00\x18ftypheic" + bytes(40)),
    "zeros.png": ("not-an-image", lambda: bytes(500)),
    "noise.jpg": ("not-an-image", lambda: np.random.default_rng(0).bytes(500)),
    "tall.png": ("too-many-pixels", lambda: png(1, 49_000_000, bytes(4000))),
    "wide.jpg": ("too-many-pixels", wide_jpeg),
    "canvas.webp": ("too-many-pixels", lambda: webp(b"VP8X", bytes(4) + b"\xfe\x3f\0\xfe\x3f\0")),
    "lossy.webp": (
        "too-many-pixels",
        lambda: webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"),
    ),
    "lossless.webp": ("too-many-pixels", lambda: webp(b"VP8L", b"\x2f\xff\xff\xff\x0f")),
    "header-only.webp": ("truncated", lambda: webp(b"VP8X", b"")),
    "text-bomb.png": ("decode-failed", lambda: png(1, 1, bytes(4), extra=bomb(b"zTXt"))),
    "late-text-bomb.png": ("decode-failed", lambda: png(1, 1, bytes(4), after=bomb(b"zTXt"))),
    "profile-bomb.png": ("decode-failed", lambda: png(1, 1, bytes(4), extra=bomb(b"iCCP"))),
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
        "unsupported-format",
        lambda: b"GIF89a/*" + encoded(picture(1), "JPEG") + b"*/=1;alert(1)",
    ),
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
