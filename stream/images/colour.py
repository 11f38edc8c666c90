"""Colours: from the profile that a picture was saved with to sRGB, which models expect.

The profile is hostile too. It is read by Little CMS in the decoding process, after the picture was
shrunk; one that cannot be used is ignored, as browsers do.
"""

import io

from PIL import Image, ImageCms

# Where in a profile its colour space stands: ICC.1:2022 section 7.2.
_SPACE = slice(16, 20)

# Of 255, between white and black. A profile that leaves less paints every picture the same.
_LEAST_CONTRAST = 64

_WHITE_AND_BLACK: dict[str, tuple[int | tuple[int, ...], int | tuple[int, ...]]] = {
    "L": (255, 0),
    "RGB": ((255, 255, 255), (0, 0, 0)),
    "CMYK": ((0, 0, 0, 0), (255, 255, 255, 255)),
}

# What Pillow and Little CMS raise for profiles that they cannot use.
_CONVERSION_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError, SyntaxError)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a picture to RGB, or RGBA, in sRGB: one of mode L, LA, RGB, RGBA or CMYK.

    A profile for another number of channels than the picture has is ignored; but a grey picture
    may have one for RGB.
    """
    if image.mode in ("LA", "RGBA"):
        opaque = to_srgb(image.convert(image.mode[:-1]), profile)
        opaque.putalpha(image.getchannel("A"))
        return opaque
    converted = None if profile is None else _converted(image, profile)
    if converted is not None:
        return converted
    return image.convert("RGB")


def _converted(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Apply a profile; None where it cannot be used."""
    mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[_SPACE])
    if mode is None or (mode != image.mode and (mode, image.mode) != ("RGB", "L")):
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            # What the profile's own header asks for is ignored by most programs; this is their
            # default.
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
        )
        if not _has_contrast(transform, mode):
            return None
        return _applied(transform, image.convert(mode))
    except _CONVERSION_ERRORS:
        return None


def _has_contrast(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether white stays lighter than black; a profile of zeros can be a valid one."""
    shown = [
        _applied(transform, Image.new(mode, (1, 1), colour)).convert("L")
        for colour in _WHITE_AND_BLACK[mode]
    ]
    white, black = (picture.tobytes()[0] for picture in shown)
    return white - black >= _LEAST_CONTRAST


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    # None only for conversions in place.
    assert converted is not None
    return converted
