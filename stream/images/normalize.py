"""Pixels: turn hostile image bytes into one plain RGB picture, alone in a process of its own.

`python -m stream.images.normalize MAX_PIXELS MEMORY_BYTES` answers requests of
`stream.images.decode_protocol` on stdin and stdout until stdin ends.
"""

import importlib
import io
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from schemas.errors import RejectInputError
from stream.images.decode_protocol import READY, NormalizedImage, Refusal, read_part, write_reply
from stream.images.image_header import (
    WEBP_BYTES_PER_PIXEL,
    check_parts,
    check_signature,
    check_size,
    damaged_header,
    webp_size,
)

# Pixels. The largest input of the image encoders here; a larger store would only cost.
LONGEST_SIDE = 448

# Pixels that are converted at a time; a strip then takes at most a few megabytes.
_STRIP_PIXELS = 1 << 20

# Memory of a decoded picture by its Pillow mode; all other modes take 4.
_BYTES_PER_PIXEL = {"L": 1, "P": 1, "1": 1, "I;16": 2}

# EXIF orientations of an image that lies on its side.
_ORIENTATION_TAG = 0x0112
_TURNED_ORIENTATIONS = (5, 6, 7, 8)

# What Pillow raises for damaged files.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    OverflowError,
    ZeroDivisionError,
)

# Words of Pillow's messages for a file that ends too early.
_TRUNCATION_WORDS = ("truncated", "premature", "incomplete", "broken data stream", "not enough")


def normalize(data: bytes, *, max_pixels: int, memory_bytes: int = sys.maxsize) -> NormalizedImage:
    """Decode an image, turn it upright, and shrink it to `LONGEST_SIDE`.

    Raises `RejectInputError` for everything that is not such an image; see `DecodePool.decode` for
    its codes. Nothing is decoded before the header was checked, and a picture that would take more
    than `memory_bytes` is refused by its header where that can be told.
    """
    kind = check_signature(data)
    check_parts(data, kind)
    if kind == "WEBP":
        # Before opening, because that is when Pillow takes memory for the whole canvas.
        check_size(
            webp_size(data), WEBP_BYTES_PER_PIXEL, max_pixels=max_pixels, memory_bytes=memory_bytes
        )
    # Pillow's own guard only warns at half its limit; ours is stricter and reads the header alone.
    Image.MAX_IMAGE_PIXELS = None
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise damaged_header(kind) from error
    except ValueError as error:
        raise _damaged(kind, str(error)) from error
    with image:
        check_size(
            image.size, _bytes_per_pixel(image), max_pixels=max_pixels, memory_bytes=memory_bytes
        )
        # A phone's MPO is a JPEG with a second view of the same moment, not an animation.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise RejectInputError(
                "animated",
                "the image must have one frame, got an animation; send the frame that counts",
            )
        return _decode(image, kind)


def limit_memory(extra_bytes: int) -> None:
    """Cap the address space of this process at what it has now plus `extra_bytes`.

    This stops what no header tells, such as a text chunk that unpacks to gigabytes. Only Linux can
    say what a process has; elsewhere there is no cap.
    """
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        cap = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (cap, cap))


def serve(requests: BinaryIO, replies: BinaryIO, *, max_pixels: int, memory_bytes: int) -> None:
    """Answer requests until they end."""
    while _serve_next(requests, replies, max_pixels, memory_bytes):
        pass


def main() -> None:
    """Run the process: limits first, then the ready mark, then requests."""
    max_pixels = int(sys.argv[1])
    memory_bytes = int(sys.argv[2])
    # Loaded before the limit is set, so that the memory is spent on the image alone.
    Image.preinit()
    importlib.import_module("PIL.WebPImagePlugin")
    limit_memory(memory_bytes)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    serve(sys.stdin.buffer, sys.stdout.buffer, max_pixels=max_pixels, memory_bytes=memory_bytes)


def _serve_next(requests: BinaryIO, replies: BinaryIO, max_pixels: int, memory_bytes: int) -> bool:
    # One request a call: when it returns, nothing keeps the image in memory.
    try:
        data = read_part(requests)
    except EOFError:
        return False
    write_reply(replies, _answer(data, max_pixels, memory_bytes))
    return True


def _answer(data: bytes, max_pixels: int, memory_bytes: int) -> NormalizedImage | Refusal:
    try:
        return normalize(data, max_pixels=max_pixels, memory_bytes=memory_bytes)
    except RejectInputError as error:
        return Refusal(error.code, str(error))
    except MemoryError:
        return Refusal(
            "out-of-memory",
            f"the image must take at most {memory_bytes >> 20:,} MiB to decode, got one that "
            "takes more; send a smaller copy or raise SIGMA_DECODE_MEMORY_BYTES",
        )


def _bytes_per_pixel(image: Image.Image) -> float:
    """Memory that decoding takes per pixel, as measured."""
    if image.format == "WEBP":
        return WEBP_BYTES_PER_PIXEL
    if isinstance(image, JpegImageFile):
        return _jpeg_bytes_per_pixel(image)
    return _BYTES_PER_PIXEL.get(image.mode, 4)


def _jpeg_bytes_per_pixel(image: JpegImageFile) -> float:
    """A progressive JPEG is kept whole until its last scan is read, 2 bytes a coefficient.

    Other JPEGs are decoded line by line and take next to nothing.
    """
    samples = [(across, down) for _, across, down, _ in image.layer]
    most_across = max(across for across, _ in samples)
    most_down = max(down for _, down in samples)
    if "progressive" not in image.info:
        return 0
    coefficients = sum(across * down for across, down in samples)
    return 2 * coefficients / max(1, most_across * most_down)


def _decode(image: Image.Image, kind: str) -> NormalizedImage:
    width, height = image.size
    buffer = io.BytesIO()
    try:
        # Lets the JPEG decoder skip what is shrunk away; a hint, without effect on other formats.
        image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
        image.load()
        upright = ImageOps.exif_transpose(_shrink(image))
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in _TURNED_ORIENTATIONS
        # No metadata: it may hold a place, a name, or text for another program's parser.
        _on_white(upright).save(buffer, format="PNG", pnginfo=None, exif=b"", icc_profile=None)
    except _DECODING_ERRORS as error:
        raise _damaged(kind, str(error)) from error
    if turned:
        width, height = height, width
    return NormalizedImage(png=buffer.getvalue(), width=width, height=height, format=kind)


def _damaged(kind: str, problem: str) -> RejectInputError:
    if any(word in problem.lower() for word in _TRUNCATION_WORDS):
        return RejectInputError(
            "truncated",
            f"the {kind} must be whole, got one that ends too early ({problem}); "
            "send the whole file",
        )
    return RejectInputError(
        "decode-failed", f"the {kind} cannot be decoded ({problem}); save it again and send that"
    )


def _shrink(image: Image.Image) -> Image.Image:
    if image.has_transparency_data or image.mode not in ("L", "RGB"):
        image = _convert(image)
    if max(image.size) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image


def _convert(image: Image.Image) -> Image.Image:
    """Convert to a mode that resizes well; a large picture strip by strip, averaged on the way.

    Copies of a whole large picture in other modes would take hundreds of megabytes.
    """
    factor = max(image.size) // (4 * LONGEST_SIDE)
    if factor <= 1:
        return _eight_bit(image)
    width, height = image.size
    # A multiple of the factor, so that no block of averaged pixels crosses two strips.
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    strips: list[Image.Image] = []
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strips.append(_eight_bit(strip).reduce(factor))
    first = strips[0]
    joined = Image.new(first.mode, (first.width, sum(strip.height for strip in strips)))
    joined.info = first.info
    for number, strip in enumerate(strips):
        joined.paste(strip, (0, number * rows // factor))
    return joined


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert any mode to one that resizes well: L, RGB, or RGBA where there is transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        # Plain conversion would clip everything above 255 to white: scale 16 bits to 8.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB; what is transparent becomes white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


if __name__ == "__main__":
    main()
