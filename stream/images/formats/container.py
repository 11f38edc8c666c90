"""The container: an image file seen from outside, reduced to what its pixels need.

Decoders read metadata too, and refuse the whole file when a date or a place in it is broken. So no
decoder gets any: the readers in this package copy the parts that hold pixels and drop the rest.
What the picture needs besides, its orientation and its colour profile, they read themselves.
"""

from dataclasses import dataclass

from schemas.errors import RejectInputError

# The formats that are taken, as messages name them.
FORMATS = "JPEG, PNG, WebP, HEIC, AVIF, TIFF, GIF or BMP"

# Pixels. The most that JPEG can declare; decoders take memory for each line.
MAX_SIDE = 65_535

# Longest side over shortest. Qwen2.5-VL's image processor raises from 200 on, and a side of a
# stored picture is rounded to whole pixels, which can add half again.
MAX_ASPECT_RATIO = 100

# A printer's profile has some megabytes; JPEG can carry 16 MiB at most.
MAX_PROFILE_BYTES = 16 << 20

# Chunks of a PNG, segments of a JPEG, strips of a TIFF. Programs write parts of some kilobytes.
MAX_PARTS = 50_000

# Memory that decoding takes whatever the size of the picture.
_BASE_BYTES = 8 << 20

# The EXIF orientation of a picture that need not be turned.
UPRIGHT = 1


@dataclass(frozen=True, slots=True)
class Container:
    """What an image file declares."""

    kind: str
    """JPEG, PNG, WEBP, HEIF, AVIF, TIFF, GIF or BMP: a name of Pillow's."""
    pixels: bytes
    """The file again, with nothing in it but what its pixels need."""
    size: tuple[int, int]
    """Width and height in pixels as declared, not yet turned upright."""
    bytes_per_pixel: float
    """Memory that decoding takes."""
    orientation: int = UPRIGHT
    """EXIF's number from 1 to 8: how the decoded picture must be turned."""
    profile: bytes | None = None
    """The ICC profile as it is in the file; nobody has checked it."""
    complete: bool = True
    """Whether the file has its end. Without one, only decoding shows whether pixels are missing."""


def check_size(
    size: tuple[int, int], bytes_per_pixel: float, *, max_pixels: int, memory_bytes: int
) -> None:
    """Refuse a decompression bomb: a small file that declares a picture too large to decode.

    `size` is (width, height) in pixels as declared; `memory_bytes` is what decoding may take.
    """
    width, height = size
    if min(size) < 1:
        raise RejectInputError(
            "decode-failed",
            f"the image must have at least one pixel a side, got {width:,} x {height:,}; "
            "save it again and send that",
        )
    if width * height > max_pixels:
        raise RejectInputError(
            "too-many-pixels",
            f"the image must have at most {max_pixels:,} pixels (SIGMA_MAX_IMAGE_PIXELS="
            f"{max_pixels}), got {width:,} x {height:,} = {width * height:,}; "
            "send a smaller copy or raise it",
        )
    if max(size) > MAX_SIDE:
        raise RejectInputError(
            "too-many-pixels",
            f"the image must have at most {MAX_SIDE:,} pixels a side, "
            f"got {width:,} x {height:,}; send a smaller copy",
        )
    check_aspect_ratio(size)
    needed_bytes = int(width * height * bytes_per_pixel) + _BASE_BYTES
    if needed_bytes > memory_bytes:
        raise RejectInputError(
            "out-of-memory",
            f"the image must take at most {memory_bytes >> 20:,} MiB to decode "
            f"(SIGMA_DECODE_MEMORY_BYTES={memory_bytes}), got {width:,} x {height:,} pixels, "
            f"which take {needed_bytes >> 20:,} MiB; send a smaller copy or raise it",
        )


def check_aspect_ratio(size: tuple[int, int]) -> None:
    """Refuse a picture that is a line: no model here sees anything in it."""
    ratio = max(size) / min(size)
    if ratio > MAX_ASPECT_RATIO:
        raise RejectInputError(
            "aspect-ratio",
            f"the image must be at most {MAX_ASPECT_RATIO} times as long as it is narrow, "
            f"got {size[0]:,} x {size[1]:,}, which is {ratio:,.0f} times; cut it into pieces",
        )


def check_parts(kind: str, parts: int) -> None:
    """Refuse a file that is all headers: each costs time, and a million fit into a small file."""
    if parts > MAX_PARTS:
        raise RejectInputError(
            "too-many-parts",
            f"the {kind} must have at most {MAX_PARTS:,} parts, got more; "
            f"save it again as a plain {kind}",
        )


def damaged(kind: str, problem: str) -> RejectInputError:
    """Build the refusal of a file whose pixels cannot be decoded."""
    return RejectInputError(
        "decode-failed", f"the {kind} cannot be decoded ({problem}); save it again and send that"
    )


def cut_short(kind: str, problem: str) -> RejectInputError:
    """Build the refusal of a file that ends before its picture does."""
    return RejectInputError(
        "truncated",
        f"the {kind} must be whole, got one that ends too early ({problem}); send the whole file",
    )


def damaged_header(kind: str, problem: str) -> RejectInputError:
    """Build the refusal of a file whose header cannot be read."""
    return RejectInputError(
        "truncated",
        f"the {kind} must have a whole header, got one that is cut short or damaged ({problem}); "
        "send the whole file",
    )


def animated() -> RejectInputError:
    """Build the refusal of an animation in a format that holds photos."""
    return RejectInputError(
        "animated", "the image must have one frame, got an animation; send the frame that counts"
    )
