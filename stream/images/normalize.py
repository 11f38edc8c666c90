"""Pixels: turn hostile image bytes into one plain RGB picture, alone in a process of its own.

`python -m stream.images.normalize MAX_PIXELS MEMORY_BYTES` answers requests of
`stream.images.decode_protocol` on stdin and stdout until stdin ends.
"""

import io
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from schemas.errors import RejectInputError
from stream.images.colour import to_srgb
from stream.images.decode_protocol import (
    LONGEST_SIDE,
    READY,
    NormalizedImage,
    RefusedImage,
    read_request,
    write_reply,
)
from stream.images.decoders import Picture, avif_orientation, load_decoders, open_picture
from stream.images.formats.container import (
    Container,
    check_size,
    cut_short,
    damaged,
)
from stream.images.formats.jpeg import endings
from stream.images.image_header import read_container

# Pixels that are converted at a time; a strip then takes at most a few megabytes.
_STRIP_PIXELS = 1 << 20

# By EXIF orientation, what turns a picture upright.
_FLIPS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those of a picture that lies on its side.
_TURNED_ORIENTATIONS = (5, 6, 7, 8)

# Modes of Pillow's that resize well and that a colour profile can be for.
_PLAIN_MODES = ("L", "RGB", "CMYK")

_SIXTEEN_BITS = 65_535

# What Pillow and libheif raise for damaged files.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
)

# Words of their messages for a file that ends too early.
_TRUNCATION_WORDS = ("truncated", "premature", "incomplete", "not enough", "end of", "too short")
_MEMORY_WORDS = ("out of memory", "memory allocation", "could not allocate", "security limit")


def normalize(
    data: bytes,
    *,
    max_pixels: int,
    memory_bytes: int = sys.maxsize,
    longest_side: int = LONGEST_SIDE,
) -> NormalizedImage:
    """Decode an image, turn it upright, convert it to sRGB, and shrink it to `longest_side` pixels.

    Raises `RejectInputError` for everything that is not such an image; see `DecodePool.decode` for
    its codes. Nothing is decoded before the header was checked, and a picture that would take more
    than `memory_bytes` is refused by its header where that can be told.
    """
    container = read_container(data)
    # The container has its own copy of the pixels.
    del data
    check_size(
        container.size,
        container.bytes_per_pixel,
        max_pixels=max_pixels,
        memory_bytes=memory_bytes,
    )
    load_decoders()
    try:
        return _decode(container, max_pixels, longest_side)
    except _DECODING_ERRORS as error:
        raise _refusal(container, str(error) or type(error).__name__, memory_bytes) from error


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
    load_decoders()
    limit_memory(memory_bytes)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    serve(sys.stdin.buffer, sys.stdout.buffer, max_pixels=max_pixels, memory_bytes=memory_bytes)


def _serve_next(requests: BinaryIO, replies: BinaryIO, max_pixels: int, memory_bytes: int) -> bool:
    # One request a call: when it returns, nothing keeps the image in memory.
    try:
        longest_side, data = read_request(requests)
    except EOFError:
        return False
    answer = [data]
    del data
    write_reply(replies, _answer(answer.pop(), max_pixels, memory_bytes, longest_side))
    return True


def _answer(
    data: bytes, max_pixels: int, memory_bytes: int, longest_side: int
) -> NormalizedImage | RefusedImage:
    try:
        return normalize(
            data, max_pixels=max_pixels, memory_bytes=memory_bytes, longest_side=longest_side
        )
    except RejectInputError as error:
        return RefusedImage(error.code, str(error))
    except MemoryError:
        refusal = _out_of_memory(memory_bytes)
        return RefusedImage(refusal.code, str(refusal))


def _decode(container: Container, max_pixels: int, longest_side: int) -> NormalizedImage:
    if container.kind == "JPEG" and not container.complete:
        container = _completed(container, longest_side)
    picture = open_picture(container.kind, container.pixels)
    # The decoder's own view of the size, which is what it takes memory for.
    check_size(picture.size, 0, max_pixels=max_pixels, memory_bytes=sys.maxsize)
    orientation = container.orientation
    if container.kind == "AVIF" and picture.image is not None:
        orientation = avif_orientation(picture.image)
    shrunk = _shrink(picture, longest_side)
    upright = _upright(_on_white(to_srgb(shrunk, container.profile)), orientation)
    width, height = picture.size
    if orientation in _TURNED_ORIENTATIONS:
        width, height = height, width
    buffer = io.BytesIO()
    # No metadata: it may hold a place, a name, or text for another program's parser.
    upright.save(buffer, format="PNG", pnginfo=None, exif=b"", icc_profile=None)
    return NormalizedImage(png=buffer.getvalue(), width=width, height=height, format=container.kind)


def _completed(container: Container, longest_side: int) -> Container:
    """Put an end to a JPEG without one; refuse it when pixels are missing too.

    Whether they are, no marker tells. But then the picture depends on what follows its data.
    """
    plain, noisy = (container.pixels + ending for ending in endings())
    if _drafted(plain, longest_side) != _drafted(noisy, longest_side):
        raise cut_short(container.kind, "it ends inside its picture")
    return replace(container, pixels=plain, complete=True)


def _drafted(pixels: bytes, longest_side: int) -> bytes:
    picture = open_picture("JPEG", pixels)
    assert picture.image is not None
    _load(picture.image, longest_side)
    return picture.image.tobytes()


def _load(image: Image.Image, longest_side: int) -> None:
    # Lets the JPEG decoder skip what is shrunk away; a hint, without effect on other formats.
    image.draft("RGB", (2 * longest_side, 2 * longest_side))
    image.load()


def _refusal(container: Container, problem: str, memory_bytes: int) -> RejectInputError:
    """Tell why a picture cannot be decoded, in the decoder's own words."""
    words = problem.lower()
    if any(word in words for word in _MEMORY_WORDS):
        return _out_of_memory(memory_bytes)
    if not container.complete or any(word in words for word in _TRUNCATION_WORDS):
        return cut_short(container.kind, problem)
    return damaged(container.kind, problem)


def _out_of_memory(memory_bytes: int) -> RejectInputError:
    return RejectInputError(
        "out-of-memory",
        f"the image must take at most {memory_bytes >> 20:,} MiB to decode "
        f"(SIGMA_DECODE_MEMORY_BYTES={memory_bytes}), got one that takes more; "
        "send a smaller copy or raise it",
    )


def _shrink(picture: Picture, longest_side: int) -> Image.Image:
    image = picture.image
    if image is not None:
        _load(image, longest_side)
        picture = replace(picture, size=image.size)
    if image is None or image.has_transparency_data or image.mode not in _PLAIN_MODES:
        image = _convert(picture, longest_side)
    if max(image.size) > longest_side:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_FLIPS[orientation]) if orientation in _FLIPS else image


def _convert(picture: Picture, longest_side: int) -> Image.Image:
    """Convert to a mode that resizes well; a large picture strip by strip, averaged on the way.

    Copies of a whole large picture in other modes would take hundreds of megabytes.
    """
    width, height = picture.size
    factor = max(1, max(picture.size) // (4 * longest_side))
    top_value = _top_value(picture.image)
    # A multiple of the factor, so that no block of averaged pixels crosses two strips.
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    strips: list[Image.Image] = []
    for top in range(0, height, rows):
        strip = _eight_bit(picture.crop(top, min(top + rows, height)), top_value)
        strips.append(strip if factor == 1 else strip.reduce(factor))
    first = strips[0]
    joined = Image.new(first.mode, (first.width, sum(strip.height for strip in strips)))
    for number, strip in enumerate(strips):
        joined.paste(strip, (0, number * rows // factor))
    return joined


def _top_value(image: Image.Image | None) -> float:
    """What counts as white in a picture of wide numbers: of 16 bits all, else the largest one."""
    if image is None or image.mode not in ("I", "F"):
        return _SIXTEEN_BITS
    ((_, largest),) = (image.getextrema(),)
    return float(largest) if isinstance(largest, (int, float)) and 0 < largest < 1e30 else 1.0


def _eight_bit(image: Image.Image, top_value: float) -> Image.Image:
    """Convert any mode to one that resizes well: L, RGB or CMYK, LA or RGBA with transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        # Plain conversion would clip everything above 255 to white: scale 16 bits to 8.
        wide = image.convert("F" if image.mode == "F" else "I")
        return wide.point(lambda value: value * (255 / top_value) + 0).convert("L")
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    return image if image.mode in _PLAIN_MODES else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB; what is transparent becomes white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


if __name__ == "__main__":
    main()
