"""Pixels: turning hostile image bytes into one plain RGB picture. Runs alone in a process with a memory limit.

`python -m stream.images.normalize` reads requests from stdin and writes replies to stdout until stdin ends. A request is a 4-byte
big-endian length and the image bytes; a reply is a 4-byte length, a JSON object, a 4-byte length and the PNG bytes.
"""

import importlib
import io
import json
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from schemas.errors import RejectInputError

LONGEST_SIDE = 448
"""Pixels. The largest input of the image encoders here; a larger store would only cost."""

_FORMATS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_FOREIGN = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
_CURE = "send a JPEG, PNG or WebP image"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_JPEG_SCAN, _JPEG_END, _JPEG_BARE = 0xDA, 0xD9, (0x01, 0xD8)

# Far above what cameras and programs write: a dozen scans, and parts of some kilobytes each.
_MAX_SCANS, _MAX_PARTS, _MAX_SIDE = 40, 50_000, 65_535
# WebP: two canvases in the library, its answer and the picture, four bytes a pixel each.
_WEBP_COST, _BASE_BYTES, _STRIP_PIXELS = 16, 8 << 20, 1 << 20


@dataclass(frozen=True, slots=True)
class Picture:
    """RGB as PNG, longest side at most 448 pixels; width and height are those of the image that arrived, upright."""

    png: bytes
    width: int
    height: int
    format: str


def normalize(data: bytes, *, max_pixels: int, memory_bytes: int = sys.maxsize) -> Picture:
    """Decodes an image. `RejectInputError` names what is wrong; nothing is decoded before the header was checked.

    What would need more than `memory_bytes` is refused by its header, where that can be told.
    """
    known = _check_signature(data)
    _check_parts(data, known)
    if known == "WEBP":
        # Before opening, for that is when Pillow takes memory for the whole canvas.
        _check_size(_webp_size(data), max_pixels, memory_bytes, _WEBP_COST)
    # Pillow's own guard only warns at half its limit; ours is stricter and looks at the header alone.
    Image.MAX_IMAGE_PIXELS = None
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise RejectInputError(
            "truncated", f"it begins as a {known} but its header is cut short or damaged; {_CURE}"
        ) from error
    except ValueError as error:
        raise _broken(known, str(error)) from error
    with image:
        _check_size(image.size, max_pixels, memory_bytes, _cost(image))
        # A phone's MPO is a JPEG with a second view of the same moment, not an animation.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise RejectInputError(
                "animated",
                "it is animated, and one identifier cannot stand for many frames; send the frame that counts",
            )
        return _decoded(image, known)


def _check_signature(data: bytes) -> str:
    if not data:
        raise RejectInputError("empty", f"the file has no bytes; {_CURE}")
    for signature, name in _FORMATS.items():
        if data.startswith(signature):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    foreign = next(
        (name for signature, name in _FOREIGN.items() if data.startswith(signature)), None
    )
    if data[4:8] == b"ftyp":
        foreign = "HEIC or AVIF"
    if foreign:
        raise RejectInputError(
            "unsupported-format", f"it looks like {foreign}, which is not decoded here; {_CURE}"
        )
    raise RejectInputError(
        "not-an-image",
        f"its first bytes are {data[:8]!r}, those of no image format known here; {_CURE}",
    )


def _check_parts(data: bytes, known: str) -> None:
    """Refuses a file that is all headers: each costs time, and a million of them fit into a small file."""
    parts, scans = (
        _png_parts(data) if known == "PNG" else _jpeg_parts(data) if known == "JPEG" else (0, 0)
    )
    if parts > _MAX_PARTS or scans > _MAX_SCANS:
        message = f"it has more than the allowed {_MAX_PARTS:,} parts or {_MAX_SCANS} scans; save it again as a plain {known}"
        raise RejectInputError("too-many-parts", message)


def _png_parts(data: bytes) -> tuple[int, int]:
    at, parts = 8, 0
    while at + 8 <= len(data) and parts <= _MAX_PARTS:
        parts += 1
        at += 12 + int.from_bytes(data[at : at + 4])
    return parts, 0


def _jpeg_parts(data: bytes) -> tuple[int, int]:
    """Segments and scans of the first picture; filling bytes between the headers count too, for Pillow reads them one by one."""
    at, parts, scans = 2, 0, 0
    while parts <= _MAX_PARTS and scans <= _MAX_SCANS and (found := _JPEG_MARKER.search(data, at)):
        mark = found[1][0]
        if mark == _JPEG_END:
            break
        parts += 1 if scans else 1 + found.start() - at
        scans += mark == _JPEG_SCAN
        at = found.end() + (
            0 if mark in _JPEG_BARE else int.from_bytes(data[found.end() : found.end() + 2])
        )
    return parts, scans


def _check_size(size: tuple[int, int], max_pixels: int, memory_bytes: int, cost: float) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > _MAX_SIDE:
        raise RejectInputError(
            "too-many-pixels",
            f"it declares {width:,} x {height:,} pixels, allowed are {max_pixels:,} in all and {_MAX_SIDE:,} a side; send a smaller copy",
        )
    needed = int(width * height * cost) + _BASE_BYTES
    if needed > memory_bytes:
        raise RejectInputError(
            "out-of-memory",
            f"it declares {width:,} x {height:,} pixels, which take {needed >> 20:,} MiB to decode, allowed are {memory_bytes >> 20:,}; "
            "send a smaller copy or raise SIGMA_DECODE_MEMORY_BYTES",
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the first chunk."""
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X" and len(head) == 10:
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8 " and len(head) == 10:
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(
            head[8:10], "little"
        ) & 0x3FFF
    if kind == b"VP8L" and len(head) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise RejectInputError(
        "truncated", f"it begins as a WEBP but its header is cut short or damaged; {_CURE}"
    )


def _cost(image: Image.Image) -> float:
    """Bytes that decoding takes per pixel, as measured."""
    if image.format == "WEBP":
        return _WEBP_COST
    if isinstance(image, JpegImageFile):
        # A progressive JPEG is kept whole, two bytes a coefficient, until its last scan is read; others line by line.
        samples = [(across, down) for _, across, down, _ in image.layer]
        finest = max(1, max(across for across, _ in samples) * max(down for _, down in samples))
        return (
            2 * sum(across * down for across, down in samples) / finest
            if "progressive" in image.info
            else 0
        )
    return {"L": 1, "P": 1, "1": 1, "I;16": 2}.get(image.mode, 4)


def _decoded(image: Image.Image, known: str) -> Picture:
    width, height = image.size
    try:
        image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
        image.load()
        small = ImageOps.exif_transpose(_shrunk(image))
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        buffer = io.BytesIO()
        _opaque(small).save(buffer, format="PNG", pnginfo=None, exif=b"", icc_profile=None)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        raise _broken(known, str(error)) from error
    return Picture(
        png=buffer.getvalue(),
        width=height if turned else width,
        height=width if turned else height,
        format=known,
    )


def _broken(known: str, found: str) -> RejectInputError:
    if any(
        word in found.lower()
        for word in ("truncated", "premature", "incomplete", "broken data stream", "not enough")
    ):
        return RejectInputError(
            "truncated", f"the {known} ends before its picture does ({found}); send the whole file"
        )
    return RejectInputError("decode-failed", f"the {known} cannot be decoded ({found}); {_CURE}")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any mode as one that resizes well: L, RGB, or with alpha RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        # Plain conversion would clip everything above 255 to white: 16 bits are scaled to 8.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    if image.has_transparency_data or image.mode not in ("L", "RGB"):
        image = _converted(image)
    if max(image.size) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image


def _converted(image: Image.Image) -> Image.Image:
    """A large picture is converted and averaged strip by strip: copies of the whole would take hundreds of megabytes."""
    factor = max(image.size) // (4 * LONGEST_SIDE)
    if factor <= 1:
        return _eight_bit(image)
    width, height = image.size
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    tops = range(0, height, rows)
    strips = [
        _eight_bit(image.crop((0, top, width, min(top + rows, height)))).reduce(factor)
        for top in tops
    ]
    whole = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    whole.info = strips[0].info
    for top, strip in zip(tops, strips, strict=True):
        whole.paste(strip, (0, top // factor))
    return whole


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def limit_memory(extra_bytes: int) -> None:
    """Caps the address space at what the process has now plus `extra_bytes`. Only Linux can say what it has now."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        cap = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (cap, cap))


def serve(requests: BinaryIO, replies: BinaryIO, *, max_pixels: int, memory_bytes: int) -> None:
    """Answers requests until they end."""
    while len(header := requests.read(4)) == 4:
        answer, png = _answer(
            requests.read(struct.unpack(">I", header)[0]), max_pixels, memory_bytes
        )
        line = json.dumps(answer).encode()
        for part in (line, png):
            replies.write(struct.pack(">I", len(part)))
            replies.write(part)
        replies.flush()


def _answer(data: bytes, max_pixels: int, memory_bytes: int) -> tuple[dict[str, str | int], bytes]:
    try:
        picture = normalize(data, max_pixels=max_pixels, memory_bytes=memory_bytes)
    except RejectInputError as error:
        return {"code": error.code, "reason": str(error)}, b""
    except MemoryError:
        return {
            "code": "out-of-memory",
            "reason": "decoding it needs more memory than one image may use; send a smaller copy",
        }, b""
    return {"width": picture.width, "height": picture.height, "format": picture.format}, picture.png


def main() -> None:
    """The process: limits first, then a ready mark, then requests."""
    max_pixels, extra_bytes = int(sys.argv[1]), int(sys.argv[2])
    # Loaded before the limit, so that the cap is spent on the image alone.
    Image.preinit()
    importlib.import_module("PIL.WebPImagePlugin")
    limit_memory(extra_bytes)
    sys.stdout.buffer.write(b"\x00")
    sys.stdout.buffer.flush()
    serve(sys.stdin.buffer, sys.stdout.buffer, max_pixels=max_pixels, memory_bytes=extra_bytes)


if __name__ == "__main__":
    main()
