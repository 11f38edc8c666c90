"""Good pictures with metadata that nobody can read: each must come out the same."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from tests.hostile import encoded, heic, picture, with_chunk

# More than the mebibyte that Pillow unpacks of a text.
_HUGE_BYTES = 1_200_000

Make = Callable[[], bytes]


def clean(kind: str) -> bytes:
    """The picture without any metadata."""
    image = picture(21)
    if kind == "HEIF":
        return heic(image)
    if kind == "GIF":
        image = image.quantize(64)
    return encoded(image, kind)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, type, count, value); values of more than four bytes lie behind."""
    table, behind = b"", b""
    place = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            table += struct.pack("<HHII", tag, kind, count, place + len(behind))
            behind += value
        else:
            table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + behind


BROKEN_EXIF: dict[str, bytes] = {
    "nan-float": exif((0x829A, 11, 1, struct.pack("<f", float("nan")))),
    "nan-double": exif((0x829D, 12, 1, struct.pack("<d", float("nan")))),
    "infinite": exif((0x829A, 11, 1, struct.pack("<f", float("inf")))),
    "zero-over-zero": exif((0x011A, 5, 1, bytes(8))),
    "negative-rational": exif((0x011A, 10, 1, struct.pack("<ii", -72, -1))),
    "unknown-type": exif((0x0110, 99, 1, b"abcd")),
    "far-away": exif((0x010F, 2, 1 << 31, b"abcd")),
    "orientation-9": exif((0x0112, 3, 1, b"\x09\0")),
    "orientation-text": exif((0x0112, 2, 4, b"up!\0")),
    "loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "no-tiff": b"this is no TIFF at all",
    "short": b"II*\0",
    "empty": b"",
    "many-entries": b"II*\0\x08\0\0\0\xff\xff",
}


def png_chunk(name: bytes, content: bytes, *, sound: bool = True) -> bytes:
    """A chunk with its checksum, or another one."""
    checksum = zlib.crc32(name + content) ^ (0 if sound else 1)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _png_chunks() -> dict[str, bytes]:
    huge = zlib.compress(bytes(_HUGE_BYTES))
    names = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD")
    names += (b"tIME", b"sBIT", b"hIST", b"sPLT", b"eXIf", b"acTL", b"fcTL", b"cICP", b"mDCV")
    chunks = {f"short-{name.decode()}": png_chunk(name, b"\x01") for name in names}
    chunks |= {f"empty-{name.decode()}": png_chunk(name, b"") for name in names}
    chunks |= {f"checksum-{name.decode()}": png_chunk(name, b"a\0b", sound=False) for name in names}
    chunks |= {f"exif-{name}": png_chunk(b"eXIf", content) for name, content in BROKEN_EXIF.items()}
    return chunks | {
        "text-over-a-megabyte": png_chunk(b"iTXt", b"key\0\1\0\0\0" + huge),
        "packed-text-over-a-megabyte": png_chunk(b"zTXt", b"key\0\0" + huge),
        "plain-text-over-a-megabyte": png_chunk(b"tEXt", b"key\0" + bytes(_HUGE_BYTES)),
        "text-not-packed": png_chunk(b"zTXt", b"key\0\0not packed"),
        "profile-over-a-megabyte": png_chunk(b"iCCP", b"name\0\0" + huge),
        "profile-not-packed": png_chunk(b"iCCP", b"name\0\0not packed"),
        "profile-of-noise": png_chunk(
            b"iCCP", b"name\0\0" + zlib.compress(np.random.default_rng(0).bytes(600))
        ),
        "transparency-too-long": png_chunk(b"tRNS", bytes(40)),
        "gamma-of-zero": png_chunk(b"gAMA", bytes(4)),
        "private": png_chunk(b"prIV", b"anything"),
    }


def _segment(code: int, content: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def _jpeg_segments() -> dict[str, bytes]:
    profile = b"ICC_PROFILE\0"
    segments = {
        f"exif-{name}": _segment(0xE1, b"Exif\0\0" + content)
        for name, content in BROKEN_EXIF.items()
    }
    segments |= {
        f"application-{code - 0xE0}": _segment(code, b"\x01") for code in range(0xE0, 0xF0)
    }
    return segments | {
        "jfif-short": _segment(0xE0, b"JFIF\0"),
        "adobe-short": _segment(0xEE, b"Adobe"),
        "photoshop-short": _segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
        "xmp": _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        "views": _segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        "profile-of-noise": _segment(0xE2, profile + b"\1\1" + bytes(range(256)) * 4),
        "profile-part-missing": _segment(0xE2, profile + b"\1\2" + bytes(200)),
        "profile-number-0": _segment(0xE2, profile + b"\0\0" + bytes(200)),
        "profile-cut": _segment(0xE2, profile),
        "profile-over-a-megabyte": b"".join(
            _segment(0xE2, profile + bytes([number, 24]) + bytes(60_000)) for number in range(1, 25)
        ),
        "comment": _segment(0xFE, b"\xff\xfe\0"),
    }


def _webp_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _webp_with(content: bytes, *chunks: bytes) -> bytes:
    """The clean WebP as an extended one with more chunks around its picture."""
    image = picture(21)
    sides = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    still = clean("WEBP")[12:]
    body = b"WEBP" + _webp_chunk(b"VP8X", b"\x2c\0\0\0" + sides) + content + still
    body += b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_files() -> dict[str, Make]:
    files: dict[str, Make] = {
        f"exif-{name}": lambda content=content: _webp_with(b"", _webp_chunk(b"EXIF", content))
        for name, content in BROKEN_EXIF.items()
    }
    return files | {
        "profile-of-noise": lambda: _webp_with(_webp_chunk(b"ICCP", bytes(range(200)))),
        "profile-empty": lambda: _webp_with(_webp_chunk(b"ICCP", b"")),
        "xmp-cut": lambda: _webp_with(b"", b"XMP \xff\xff\0\0<x"),
        "unknown-chunk": lambda: _webp_with(_webp_chunk(b"zzzz", b"abc")),
        "wrong-length": lambda: b"RIFF\x04\0\0\0" + clean("WEBP")[8:],
        "trailing-bytes": lambda: clean("WEBP") + b"abcde",
    }


def _tiff_with(*entries: tuple[int, int, int, bytes]) -> bytes:
    """The clean TIFF with a directory that has more entries, behind all else."""
    good = clean("TIFF")
    (start,) = struct.unpack_from("<I", good, 4)
    (count,) = struct.unpack_from("<H", good, start)
    table = [good[start + 2 + 12 * number :][:12] for number in range(count)]
    for tag, kind, number, value in entries:
        table.append(struct.pack("<HHI", tag, kind, number) + value.ljust(4, b"\0"))
    directory = struct.pack("<H", len(table)) + b"".join(sorted(table)) + bytes(4)
    return good[:4] + struct.pack("<I", len(good)) + good[8:] + directory


def _tiff_files() -> dict[str, Make]:
    return {
        "resolution-nowhere": lambda: _tiff_with((282, 5, 1, b"\xff\xff\xff\x7f")),
        "resolution-of-zeros": lambda: _tiff_with((283, 5, 1, bytes(4))),
        "text-of-gigabytes": lambda: _tiff_with((270, 2, 1 << 31, b"\x08\0\0\0")),
        "profile-nowhere": lambda: _tiff_with((34675, 7, 5000, b"\xff\xff\xff\x7f")),
        "exif-nowhere": lambda: _tiff_with((34665, 4, 1, b"\xff\xff\xff\x7f")),
        "xmp-nowhere": lambda: _tiff_with((700, 1, 900, b"\xff\xff\xff\x7f")),
        "orientation-9": lambda: _tiff_with((274, 3, 1, b"\x09")),
        "unknown-type": lambda: _tiff_with((306, 77, 1, b"abcd")),
        "nan": lambda: _tiff_with((33434, 11, 1, struct.pack("<f", float("nan")))),
    }


def _gif_with(extension: bytes) -> bytes:
    good = clean("GIF")
    place = 13 + (3 << (good[10] & 7) + 1)
    return good[:place] + extension + good[place:]


def _gif_files() -> dict[str, Make]:
    return {
        "comment": lambda: _gif_with(b"\x21\xfe\x03\xff\xfe\xfd\0"),
        "application-short": lambda: _gif_with(b"\x21\xff\x02NE\0"),
        "loops": lambda: _gif_with(b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0"),
        "profile-of-noise": lambda: _gif_with(b"\x21\xff\x0bICCRGBG1012\x05noise\0"),
        "control-short": lambda: _gif_with(b"\x21\xf9\x01\x01\0"),
        "plain-text": lambda: _gif_with(b"\x21\x01\x02ab\0"),
        "unknown-label": lambda: _gif_with(b"\x21\x99\x02ab\0"),
        "no-trailer": lambda: clean("GIF")[:-1],
    }


def _heif_files(kind: str) -> dict[str, Make]:
    image = picture(21)

    def with_exif(content: bytes) -> bytes:
        if kind == "AVIF":
            return encoded(image, kind, exif=content)
        return heic(image, exif=content)

    def misplaced() -> bytes:
        # The item is there, its bytes are not EXIF.
        good = with_exif(exif((0x0110, 2, 4, b"cam\0")))
        return good.replace(b"II*\0", b"\xff\xff\xff\xff")

    def with_profile(content: bytes) -> bytes:
        if kind == "AVIF":
            return encoded(image, kind, icc_profile=content)
        buffer = image.copy()
        buffer.info["icc_profile"] = content
        return heic(buffer)

    return {
        "exif-no-tiff": misplaced,
        "exif-nan": lambda: with_exif(b"Exif\0\0" + BROKEN_EXIF["nan-float"]),
        "profile-of-noise": lambda: with_profile(b"noise" * 100),
        "profile-over-a-megabyte": lambda: with_profile(bytes(_HUGE_BYTES)),
        "trailing-bytes": lambda: clean(kind) + b"abcde",
    }


def _bmp_with_head(position: int, value: bytes) -> bytes:
    good = clean("BMP")
    return good[:position] + value + good[position + len(value) :]


def _later_bmp(colours: bytes) -> bytes:
    """The clean BMP with a version 5 header."""
    good = clean("BMP")
    head = struct.pack("<I", 124) + good[18:54] + bytes(16) + colours
    head = head.ljust(124, b"\0")
    return good[:10] + struct.pack("<I", 14 + 124) + head + good[54:]


def _bmp_files() -> dict[str, Make]:
    return {
        "file-size": lambda: _bmp_with_head(2, b"\xff\xff\xff\xff"),
        "resolution": lambda: _bmp_with_head(38, b"\xff" * 8),
        "reserved": lambda: _bmp_with_head(6, b"abcd"),
        "profile-nowhere": lambda: _later_bmp(b"DEBM" + bytes(52) + b"\xff\xff\0\0\xff\xff\0\0"),
        "profile-linked": lambda: _later_bmp(b"KNIL" + bytes(52) + b"\x10\0\0\0\x10\0\0\0"),
    }


def _with_text(kind: str) -> bytes:
    return with_chunk(clean(kind), png_chunk(b"tEXt", b"key\0" + bytes(1000)), b"IEND")


def _in_png(chunk: bytes, place: bytes) -> Make:
    return lambda: with_chunk(clean("PNG"), chunk, place)


def _in_jpeg(segment: bytes) -> Make:
    return lambda: clean("JPEG")[:2] + segment + clean("JPEG")[2:]


def broken_metadata() -> dict[str, tuple[str, Make]]:
    """By name, the format and how the bytes are made."""
    made: dict[str, tuple[str, Make]] = {}
    for name, chunk in _png_chunks().items():
        made[f"{name}.png"] = ("PNG", _in_png(chunk, b"IDAT"))
        made[f"{name}-behind.png"] = ("PNG", _in_png(chunk, b"IEND"))
    made["no-end.png"] = ("PNG", lambda: clean("PNG")[:-12])
    made["half-a-checksum.png"] = ("PNG", lambda: clean("PNG")[:-14])
    made["cut-in-a-text.png"] = ("PNG", lambda: _with_text("PNG")[:-400])
    made["trailing-bytes.png"] = ("PNG", lambda: clean("PNG") + b"abcde")
    for name, segment in _jpeg_segments().items():
        made[f"{name}.jpg"] = ("JPEG", _in_jpeg(segment))
    made["no-end.jpg"] = ("JPEG", lambda: clean("JPEG")[:-2])
    made["half-an-end.jpg"] = ("JPEG", lambda: clean("JPEG")[:-1])
    made["zeros-for-an-end.jpg"] = ("JPEG", lambda: clean("JPEG")[:-2] + bytes(512))
    for kind, files in {
        "WEBP": _webp_files(),
        "TIFF": _tiff_files(),
        "GIF": _gif_files(),
        "BMP": _bmp_files(),
        "HEIF": _heif_files("HEIF"),
        "AVIF": _heif_files("AVIF"),
    }.items():
        made |= {f"{name}.{kind.lower()}": (kind, make) for name, make in files.items()}
    return made


def decoded(png: bytes) -> Image.Image:
    """The picture of a normalised image."""
    return Image.open(BytesIO(png))
