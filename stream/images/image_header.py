"""Image headers: what hostile bytes declare about themselves, checked before anything is decoded.

Each check stops one attack: files of another format that a decoder guesses, files that are all
headers and cost time, and small files that declare a picture too large for the memory.
"""

import re

from schemas.errors import RejectInputError

# Memory to decode a WebP: two canvases in libwebp, its answer and the picture, 4 bytes each.
WEBP_BYTES_PER_PIXEL = 16

# Formats that get a better message than "not an image".
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_FOREIGN_SIGNATURES = {
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

# Scans of a JPEG. Programs write a dozen; every scan paints all pixels again.
_MAX_SCANS = 40
# Chunks of a PNG, segments of a JPEG. Programs write parts of some kilobytes each.
_MAX_PARTS = 50_000
# Pixels. The most that JPEG can declare; decoders take memory for each line.
_MAX_SIDE = 65_535
# Memory that decoding takes whatever the size of the picture.
_BASE_BYTES = 8 << 20

# Bytes: length, name and checksum of a chunk.
_PNG_CHUNKS_START = 8
_PNG_CHUNK_OVERHEAD = 12

# FF 00 is a stuffed byte, and FF D0 to FF D7 are restart marks, of the pixels of a scan.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_JPEG_SCAN = 0xDA
_JPEG_END = 0xD9
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8)

# Sides in the chunks `VP8 ` and `VP8L` have 14 bits.
_WEBP_SIZE_MASK = 0x3FFF


def check_signature(data: bytes) -> str:
    """Return the format that the first bytes declare: JPEG, PNG or WEBP.

    Nothing else reaches a decoder: Pillow would guess among dozens of formats.
    """
    if not data:
        raise RejectInputError(
            "empty", "the image must not be empty, got no bytes; send a JPEG, PNG or WebP image"
        )
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    foreign = _foreign_format(data)
    if foreign is not None:
        raise RejectInputError(
            "unsupported-format",
            f"the image must be a JPEG, PNG or WebP, got what looks like {foreign}; convert it",
        )
    raise RejectInputError(
        "not-an-image",
        f"the image must be a JPEG, PNG or WebP, got the first bytes {data[:8]!r}; convert it",
    )


def check_parts(data: bytes, kind: str) -> None:
    """Refuse a file that is all headers: each costs time, and a million fit into a small file."""
    parts = 0
    scans = 0
    if kind == "PNG":
        parts = _count_png_chunks(data)
    elif kind == "JPEG":
        parts, scans = _count_jpeg_segments(data)
    if parts > _MAX_PARTS or scans > _MAX_SCANS:
        raise RejectInputError(
            "too-many-parts",
            f"the {kind} must have at most {_MAX_PARTS:,} parts and {_MAX_SCANS} scans, got more; "
            f"save it again as a plain {kind}",
        )


def check_size(
    size: tuple[int, int], bytes_per_pixel: float, *, max_pixels: int, memory_bytes: int
) -> None:
    """Refuse a decompression bomb: a small file that declares a picture too large to decode.

    `size` is (width, height) in pixels as declared; `memory_bytes` is what decoding may take.
    """
    width, height = size
    if width * height > max_pixels or max(size) > _MAX_SIDE:
        raise RejectInputError(
            "too-many-pixels",
            f"the image must have at most {max_pixels:,} pixels and {_MAX_SIDE:,} a side, "
            f"got {width:,} x {height:,}; send a smaller copy",
        )
    needed_bytes = int(width * height * bytes_per_pixel) + _BASE_BYTES
    if needed_bytes > memory_bytes:
        raise RejectInputError(
            "out-of-memory",
            f"the image must take at most {memory_bytes >> 20:,} MiB to decode, got "
            f"{width:,} x {height:,} pixels, which take {needed_bytes >> 20:,} MiB; "
            "send a smaller copy or raise SIGMA_DECODE_MEMORY_BYTES",
        )


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels of a WebP's canvas, from its first chunk."""
    kind = data[12:16]
    head = data[20:30]
    if kind == b"VP8X" and len(head) == 10:
        width = 1 + int.from_bytes(head[4:7], "little")
        height = 1 + int.from_bytes(head[7:10], "little")
        return width, height
    if kind == b"VP8 " and len(head) == 10:
        width = int.from_bytes(head[6:8], "little") & _WEBP_SIZE_MASK
        height = int.from_bytes(head[8:10], "little") & _WEBP_SIZE_MASK
        return width, height
    if kind == b"VP8L" and len(head) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & _WEBP_SIZE_MASK), 1 + (bits >> 14 & _WEBP_SIZE_MASK)
    raise damaged_header("WEBP")


def damaged_header(kind: str) -> RejectInputError:
    """Build the refusal of a file whose header cannot be read."""
    return RejectInputError(
        "truncated",
        f"the {kind} must have a whole header, got one that is cut short or damaged; "
        "send the whole file",
    )


def _foreign_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return "HEIC or AVIF"
    for signature, name in _FOREIGN_SIGNATURES.items():
        if data.startswith(signature):
            return name
    return None


def _count_png_chunks(data: bytes) -> int:
    """Count the chunks, up to one more than is allowed."""
    position = _PNG_CHUNKS_START
    chunks = 0
    while position + 8 <= len(data) and chunks <= _MAX_PARTS:
        chunks += 1
        position += _PNG_CHUNK_OVERHEAD + int.from_bytes(data[position : position + 4])
    return chunks


def _count_jpeg_segments(data: bytes) -> tuple[int, int]:
    """Count segments and scans of the first picture, up to one more than is allowed."""
    position = 2
    segments = 0
    scans = 0
    while segments <= _MAX_PARTS and scans <= _MAX_SCANS:
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            break
        code = marker[1][0]
        if code == _JPEG_END:
            break
        segments += 1
        if scans == 0:
            # Filling bytes between the headers count too: Pillow reads them one by one.
            segments += marker.start() - position
        if code == _JPEG_SCAN:
            scans += 1
        position = marker.end()
        if code not in _JPEG_WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2])
    return segments, scans
