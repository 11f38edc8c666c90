"""Image headers: what hostile bytes declare about themselves, checked before anything is decoded.

The first bytes choose the reader, and so the decoder. Nothing else may: Pillow would guess among
dozens of formats.
"""

from schemas.errors import RejectInputError
from stream.images.formats.bmp import is_bmp, read_bmp
from stream.images.formats.container import FORMATS, Container
from stream.images.formats.gif import SIGNATURES as GIF_SIGNATURES
from stream.images.formats.gif import read_gif
from stream.images.formats.heif import heif_kind, read_heif
from stream.images.formats.jpeg import SIGNATURE as JPEG_SIGNATURE
from stream.images.formats.jpeg import read_jpeg
from stream.images.formats.png import SIGNATURE as PNG_SIGNATURE
from stream.images.formats.png import read_png
from stream.images.formats.tiff import SIGNATURES as TIFF_SIGNATURES
from stream.images.formats.tiff import read_tiff
from stream.images.formats.webp import is_webp, read_webp

# Formats that get a better message than "not an image".
_FOREIGN_SIGNATURES = {
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"GIF": "a GIF of another version than 87a and 89a",
    b"FUJIFILM": "a camera's raw file",
    b"II\x55\0": "a camera's raw file",
    b"IIRO": "a camera's raw file",
}


def read_container(data: bytes) -> Container:
    """Return what an image file declares; `RejectInputError` for all that is not one on the list.

    Its codes are empty, not-an-image, unsupported-format, truncated, too-many-parts, animated and
    decode-failed.
    """
    if not data:
        raise RejectInputError(
            "empty", f"the image must not be empty, got no bytes; send a {FORMATS} image"
        )
    if data.startswith(JPEG_SIGNATURE):
        return read_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return read_png(data)
    if is_webp(data):
        return read_webp(data)
    if data.startswith(GIF_SIGNATURES):
        return read_gif(data)
    if data.startswith(TIFF_SIGNATURES):
        return read_tiff(data)
    if is_bmp(data):
        return read_bmp(data)
    if heif_kind(data) is not None:
        return read_heif(data)
    raise _foreign(data)


def _foreign(data: bytes) -> RejectInputError:
    for signature, name in _FOREIGN_SIGNATURES.items():
        if data.startswith(signature):
            return RejectInputError(
                "unsupported-format",
                f"the image must be a {FORMATS}, got what looks like {name}; convert it",
            )
    if data[4:8] == b"ftyp":
        return RejectInputError(
            "unsupported-format",
            f"the image must be a {FORMATS}, got a file of the kind {data[8:12]!r}, "
            "such as a film; convert it",
        )
    return RejectInputError(
        "not-an-image",
        f"the image must be a {FORMATS}, got the first bytes {data[:8]!r}; convert it",
    )
