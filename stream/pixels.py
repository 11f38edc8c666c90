"""Pixels: turning hostile image bytes into one plain RGB picture. Runs alone in a process with a memory limit.

`python -m stream.pixels` reads requests from stdin and writes replies to stdout until stdin ends. A request is a 4-byte
big-endian length and the image bytes; a reply is a 4-byte length, a JSON object, a 4-byte length and the PNG bytes.
"""

import importlib
import io
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

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
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
_CURE = "send a JPEG, PNG or WebP image"


@dataclass(frozen=True, slots=True)
class Picture:
    """RGB as PNG, longest side at most 448 pixels; width and height are those of the image that arrived, upright."""

    png: bytes
    width: int
    height: int
    format: str


def normalize(data: bytes, *, max_pixels: int) -> Picture:
    """Decodes an image. `RejectInputError` names what is wrong; nothing is decoded before the header was checked."""
    known = _check_signature(data)
    # Pillow's own guard only warns at half its limit; ours is stricter and looks at the header alone.
    Image.MAX_IMAGE_PIXELS = None
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RejectInputError("truncated", f"it begins as a {known} but its header is cut short or damaged; {_CURE}") from error
    with image:
        _check_header(image, max_pixels)
        return _decoded(image, known)


def _check_signature(data: bytes) -> str:
    if not data:
        raise RejectInputError("empty", f"the file has no bytes; {_CURE}")
    for signature, name in _FORMATS.items():
        if data.startswith(signature):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    foreign = next((name for signature, name in _FOREIGN.items() if data.startswith(signature)), None)
    if data[4:8] == b"ftyp":
        foreign = "HEIC or AVIF"
    if foreign:
        raise RejectInputError("unsupported-format", f"it looks like {foreign}, which is not decoded here; {_CURE}")
    raise RejectInputError("not-an-image", f"its first bytes are {data[:8]!r}, those of no image format known here; {_CURE}")


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise RejectInputError(
            "too-many-pixels", f"it declares {width:,} x {height:,} pixels, allowed are {max_pixels:,} in all; send a smaller copy"
        )
    # A phone's MPO is a JPEG with a second view of the same moment, not an animation.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise RejectInputError("animated", "it is animated, and one identifier cannot stand for many frames; send the frame that counts")


def _decoded(image: Image.Image, known: str) -> Picture:
    width, height = image.size
    try:
        image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
        image.load()
        small = ImageOps.exif_transpose(_shrunk(_eight_bit(image)))
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        buffer = io.BytesIO()
        _opaque(small).save(buffer, format="PNG", pnginfo=None, exif=b"", icc_profile=None)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, ZeroDivisionError) as error:
        raise _broken(known, str(error)) from error
    return Picture(png=buffer.getvalue(), width=height if turned else width, height=width if turned else height, format=known)


def _broken(known: str, found: str) -> RejectInputError:
    if any(word in found.lower() for word in ("truncated", "premature", "incomplete", "broken data stream", "not enough")):
        return RejectInputError("truncated", f"the {known} ends before its picture does ({found}); send the whole file")
    return RejectInputError("decode-failed", f"the {known} cannot be decoded ({found}); {_CURE}")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any mode as one that resizes well: L, RGB, or with alpha LA, RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        # Plain conversion would clip everything above 255 to white: 16 bits are scaled to 8.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    if max(image.size) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image


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


def serve(requests: BinaryIO, replies: BinaryIO, *, max_pixels: int) -> None:
    """Answers requests until they end."""
    while len(header := requests.read(4)) == 4:
        answer, png = _answer(requests.read(struct.unpack(">I", header)[0]), max_pixels)
        line = json.dumps(answer).encode()
        for part in (line, png):
            replies.write(struct.pack(">I", len(part)))
            replies.write(part)
        replies.flush()


def _answer(data: bytes, max_pixels: int) -> tuple[dict[str, str | int], bytes]:
    try:
        picture = normalize(data, max_pixels=max_pixels)
    except RejectInputError as error:
        return {"code": error.code, "reason": str(error)}, b""
    except MemoryError:
        return {"code": "out-of-memory", "reason": "decoding it needs more memory than one image may use; send a smaller copy"}, b""
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
    serve(sys.stdin.buffer, sys.stdout.buffer, max_pixels=max_pixels)


if __name__ == "__main__":
    main()
