"""Decoders: one for each format on the list, none of which guesses.

Pillow decodes all but HEIC, which libheif does (pi-heif: decoders only, LGPL).
"""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import pi_heif
from PIL import AvifImagePlugin, Image

from stream.images.formats.container import damaged

# Pillow's formats that are taken, and the modules that register them.
_PLUGINS = {
    "JPEG": "PIL.JpegImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
}

_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is decoded, or will be when it is looked at."""

    size: tuple[int, int]
    image: Image.Image | None
    """Pillow's picture, if it is one."""
    crop: Callable[[int, int], Image.Image]
    """The rows from the first number up to the second one."""


def load_decoders() -> None:
    """Load all decoders; before memory is limited, so that it is spent on the image alone."""
    for module in _PLUGINS.values():
        importlib.import_module(module)
    # Threads would need memory each, and more of it on larger machines.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    pi_heif.options.DECODE_THREADS = 1
    # What the normalised picture has no use for.
    pi_heif.options.THUMBNAILS = False
    pi_heif.options.DEPTH_IMAGES = False
    pi_heif.options.AUX_IMAGES = False
    # Pillow's own guard only warns at half its limit; ours is stricter and reads the header alone.
    Image.MAX_IMAGE_PIXELS = None


def open_picture(kind: str, pixels: bytes) -> Picture:
    """Open a picture with the decoder of its kind."""
    if kind == "HEIF":
        return _open_heif(pixels)
    importlib.import_module(_PLUGINS[kind])
    # Not Image.open: it says only that no decoder took the file, not why.
    factory, _ = Image.OPEN[kind]
    image = factory(io.BytesIO(pixels), "")
    return Picture(image.size, image, lambda top, end: image.crop((0, top, image.width, end)))


def avif_orientation(image: Image.Image) -> int:
    """Return how an AVIF must be turned: its rotation and mirror, which Pillow tells as EXIF."""
    return int(image.getexif().get(_ORIENTATION_TAG, 1))


def _open_heif(pixels: bytes) -> Picture:
    """Decode a HEIC; it comes upright.

    Not into a picture of Pillow's, which would take as much memory as all before.
    """
    picture = pi_heif.open_heif(io.BytesIO(pixels), convert_hdr_to_8bit=True, remove_stride=False)
    data = memoryview(picture.data)
    # Only now: decoding can change them.
    width, height = picture.size
    stride = picture.stride
    if len(data) < stride * height:
        raise damaged("HEIC", "fewer rows than declared")

    def crop(top: int, end: int) -> Image.Image:
        # Of the picture and not of `data`: the memory is gone with the picture.
        rows = memoryview(picture.data)[top * stride : end * stride]
        return Image.frombytes(picture.mode, (width, end - top), rows, "raw", picture.mode, stride)

    return Picture((width, height), None, crop)
