"""The reader of JPEG: tables, frame and scans; comments and application segments are dropped.

ITU-T T.81 annex B; the colour profile as in ICC.1:2022 annex B.4.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.errors import RejectInputError
from stream.images.formats.container import (
    MAX_PARTS,
    MAX_PROFILE_BYTES,
    UPRIGHT,
    Container,
    check_parts,
    cut_short,
    damaged_header,
)
from stream.images.formats.exif import exif_orientation

SIGNATURE = b"\xff\xd8\xff"
END = b"\xff\xd9"

# Scans of a JPEG. Programs write a dozen; every scan paints all pixels again.
_MAX_SCANS = 40

# FF 00 is a stuffed byte, and FF D0 to FF D7 are restart marks, of the pixels of a scan.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START = 0xD8
_END_CODE = 0xD9
_SCAN = 0xDA
_WITHOUT_LENGTH = (0x01, _START)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_FRAMES = (0xC2, 0xC6, 0xCA, 0xCE)
_APPLICATION = range(0xE0, 0xF0)
_JFIF = 0xE0
_EXIF = 0xE1
_ICC = 0xE2
_ADOBE = 0xEE
_COMMENT = 0xFE

# Whether there is one decides between RGB and YCbCr; the resolution and thumbnail in it do not.
_JFIF_SEGMENT = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ICC_PREFIX = b"ICC_PROFILE\0"
_ADOBE_BYTES = 12

# Of a block.
_COEFFICIENTS = 64


@dataclass(slots=True)
class _Outline:
    """What a walk over the markers has found so far."""

    kept: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    frame: bytes = b""
    frame_code: int = 0
    orientation: int | None = None
    profile_parts: dict[int, bytes] = field(default_factory=dict)
    profile_count: int = 0
    scans: list[bytes] = field(default_factory=list)
    segments: int = 0
    first_scan: int = 0
    """Position of the first scan's marker; 0 before it is found."""
    end: int = 0
    """Position behind the end marker; 0 where there is none."""


def read_jpeg(data: bytes) -> Container:
    """Return the container of a JPEG's first picture; what is behind it is dropped."""
    outline = _walk(data)
    check_parts("JPEG", outline.segments)
    if len(outline.scans) > _MAX_SCANS:
        raise RejectInputError(
            "too-many-parts",
            f"the JPEG must have at most {_MAX_SCANS} scans, got more; "
            "save it again as a plain JPEG",
        )
    if len(outline.frame) < 6 or not outline.first_scan:
        raise damaged_header("JPEG", "no picture in it")
    complete = outline.end > 0
    if not complete and not _covers_all(outline):
        raise cut_short("JPEG", "scans are missing")
    scans = data[outline.first_scan : outline.end or len(data)]
    if not complete:
        # Half an end marker.
        scans = scans.removesuffix(b"\xff")
    height, width = outline.frame[1:3], outline.frame[3:5]
    return Container(
        kind="JPEG",
        pixels=b"".join([*outline.kept, scans]),
        size=(int.from_bytes(width), int.from_bytes(height)),
        orientation=outline.orientation or UPRIGHT,
        profile=_profile(outline.profile_parts, outline.profile_count),
        bytes_per_pixel=_bytes_per_pixel(outline),
        complete=complete,
    )


def endings() -> tuple[bytes, bytes]:
    """Return two ends for a file without one: nothing more, and data that paints noise.

    A picture that is all there is the same with either; one that is cut is not. Restart marks are
    among the noise, because a decoder skips everything up to the next one at a cut before a mark.
    """
    noise = bytes((number * 151 + 121) % 251 for number in range(256))
    marked = b"".join(noise + bytes([0xFF, 0xD0 + number % 8]) for number in range(24))
    return END, noise + marked + noise + END


def _walk(data: bytes) -> _Outline:
    """Find segments and scans of the first picture, up to one more than is allowed."""
    outline = _Outline()
    position = 2
    while outline.segments <= MAX_PARTS and len(outline.scans) <= _MAX_SCANS:
        marker = _MARKER.search(data, position)
        if marker is None:
            break
        code = marker[1][0]
        if code == _END_CODE:
            outline.end = marker.end()
            break
        outline.segments += 1
        if not outline.scans:
            # Filling bytes between the headers count too: decoders read them one by one.
            outline.segments += marker.start() - position
        position = marker.end()
        if code not in _WITHOUT_LENGTH:
            length = max(2, int.from_bytes(data[position : position + 2]))
            _note(outline, code, marker.start(), data[marker.start() : position + length])
            position += length
    return outline


def _note(outline: _Outline, code: int, start: int, segment: bytes) -> None:
    """Keep a segment if pixels need it, and what it says about the picture."""
    content = segment[4:]
    if code == _SCAN:
        outline.first_scan = outline.first_scan or start
        outline.scans.append(content)
    elif outline.first_scan:
        # Tables between scans are kept with the scans.
        return
    elif code in _APPLICATION or code == _COMMENT:
        _note_application(outline, code, segment, content)
    else:
        outline.kept.append(segment)
        if code in _FRAMES and not outline.frame:
            outline.frame, outline.frame_code = content, code


def _note_application(outline: _Outline, code: int, segment: bytes, content: bytes) -> None:
    if code == _JFIF and content.startswith(b"JFIF\0"):
        outline.kept.append(_JFIF_SEGMENT)
    elif code == _ADOBE and content.startswith(b"Adobe") and len(content) >= _ADOBE_BYTES:
        outline.kept.append(segment)
    elif code == _EXIF and content.startswith(b"Exif\0\0") and outline.orientation is None:
        outline.orientation = exif_orientation(content)
    elif code == _ICC and content.startswith(_ICC_PREFIX):
        number, count = (*content[12:14], 0, 0)[:2]
        outline.profile_count = outline.profile_count or count
        outline.profile_parts.setdefault(number, content[14:])


def _profile(parts: Mapping[int, bytes], count: int) -> bytes | None:
    """Join the parts of a profile; None where one is missing or too many are there."""
    if not count or sorted(parts) != list(range(1, count + 1)):
        return None
    profile = b"".join(parts[number] for number in range(1, count + 1))
    return profile if len(profile) <= MAX_PROFILE_BYTES else None


def _samples(outline: _Outline) -> list[tuple[int, int]]:
    """How often each component is sampled (across, down) in a unit."""
    factors = outline.frame[7::3][: outline.frame[5]]
    return [(max(1, factor >> 4), max(1, factor & 15)) for factor in factors]


def _bytes_per_pixel(outline: _Outline) -> float:
    """A JPEG of several scans is kept whole until its last one is read, 2 bytes a coefficient.

    Other JPEGs are decoded line by line and take next to nothing.
    """
    samples = _samples(outline)
    if not samples or not _is_kept_whole(outline):
        return 0
    most = max(across for across, _ in samples) * max(down for _, down in samples)
    return 2 * sum(across * down for across, down in samples) / most


def _is_kept_whole(outline: _Outline) -> bool:
    return outline.frame_code in _PROGRESSIVE_FRAMES or len(outline.scans) > 1


def _covers_all(outline: _Outline) -> bool:
    """Whether the scans that are there hold every coefficient of every component to its last bit.

    ITU-T T.81 section B.2.3. A cut between two scans shows only here.
    """
    components = outline.frame[6::3][: outline.frame[5]]
    progressive = outline.frame_code in _PROGRESSIVE_FRAMES
    found: dict[int, set[int]] = {component: set() for component in components}
    for scan in outline.scans:
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            continue
        start, end, bits = scan[1 + 2 * count : 4 + 2 * count]
        if not progressive:
            start, end, bits = 0, _COEFFICIENTS - 1, 0
        if bits & 15 == 0:
            for component in scan[1 : 1 + 2 * count : 2]:
                found.get(component, set()).update(range(start, min(end, _COEFFICIENTS - 1) + 1))
    return all(len(coefficients) == _COEFFICIENTS for coefficients in found.values())
