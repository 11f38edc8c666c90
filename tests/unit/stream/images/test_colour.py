"""Colours come out as they were meant: profiles are applied, those that cannot be are ignored."""

import io
import re
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from schemas.records import FloatArray
from stream.images.decode_pool import DecodeLimits
from stream.images.normalize import normalize
from tests.broken_metadata import decoded
from tests.colour_profiles import (
    ADOBE_RGB,
    D50,
    D65,
    DISPLAY_P3,
    PROPHOTO,
    SRGB,
    SWAPPED,
    cmyk_profile,
    grey_profile,
    in_srgb,
    rgb_profile,
)
from tests.hostile import encoded, heic

PIXELS = DecodeLimits().max_pixels
# Of 255.
WITHIN = 2.0

SPACES = {
    "display-p3": (DISPLAY_P3, D65, 2.2),
    "adobe-rgb": (ADOBE_RGB, D65, 2.2),
    "prophoto": (PROPHOTO, D50, 1.8),
    "swapped": (SWAPPED, D65, 2.2),
    "linear": (SRGB, D65, 1.0),
}


def patches(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Sixteen flat colours, which no compression changes much."""
    colours = np.random.default_rng(3).integers(30, 226, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def centres(image: Image.Image) -> FloatArray:
    """The sixteen colours."""
    return np.asarray(image.resize((8, 8), Image.Resampling.NEAREST), dtype=float)[1::2, 1::2]


def pixels(data: bytes) -> FloatArray:
    """The normalised picture's sixteen colours."""
    return centres(decoded(normalize(data, max_pixels=PIXELS).png))


def stored(kind: str, image: Image.Image, profile: bytes | None) -> bytes:
    """A file of a kind with a profile."""
    if kind == "HEIF":
        copy = image.copy()
        copy.info["icc_profile"] = profile
        return heic(copy, chroma=444)
    options: dict[str, object] = {"icc_profile": profile} if profile else {}
    if kind == "WEBP":
        options |= {"lossless": True}
    if kind in ("JPEG", "AVIF"):
        options |= {"quality": 98, "subsampling": 0 if kind == "JPEG" else "4:4:4"}
    return encoded(image, kind, **options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "HEIF", "AVIF"])
@pytest.mark.parametrize("space", SPACES)
def test_a_picture_with_a_profile_comes_out_in_srgb(space: str, kind: str) -> None:
    profile = rgb_profile(*SPACES[space])
    # What this file holds, whatever its compression did to the colours.
    raw = pixels(stored(kind, patches(), None))
    expected = in_srgb(raw, *SPACES[space])
    assert np.abs(expected - raw).max() > 8
    made = pixels(stored(kind, patches(), profile))
    assert np.abs(made - expected).max() <= WITHIN


def gif_with_profile(profile: bytes) -> bytes:
    """The patches as a GIF with an extension that holds a profile."""
    good = encoded(patches().quantize(16), "GIF")
    place = 13 + (3 << (good[10] & 7) + 1)
    blocks = [profile[at : at + 255] for at in range(0, len(profile), 255)]
    chain = b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    return good[:place] + b"\x21\xff\x0bICCRGBG1012" + chain + good[place:]


def bmp_with_profile(profile: bytes) -> bytes:
    """The patches as a BMP with a version 5 header and a profile behind the pixels."""
    good = encoded(patches(), "BMP")
    head = struct.pack("<I", 124) + good[18:54] + bytes(16) + b"DEBM"
    head = head.ljust(112, b"\0")
    head += struct.pack("<II", 124 + len(good) - 54, len(profile)) + bytes(4)
    return good[:10] + struct.pack("<I", 14 + 124) + head + good[54:] + profile


@pytest.mark.parametrize("make", [gif_with_profile, bmp_with_profile])
def test_old_formats_with_a_profile_come_out_in_srgb(make: Callable[[bytes], bytes]) -> None:
    made = pixels(make(rgb_profile(*SPACES["swapped"])))
    expected = in_srgb(centres(patches()), *SPACES["swapped"])
    assert np.abs(made - expected).max() <= WITHIN


def test_transparent_pictures_are_converted_too() -> None:
    image = patches().convert("RGBA")
    profile = rgb_profile(*SPACES["swapped"])
    made = pixels(encoded(image, "PNG", icc_profile=profile))
    assert np.abs(made - in_srgb(centres(patches()), *SPACES["swapped"])).max() <= WITHIN


def test_palettes_are_converted_too() -> None:
    image = patches().quantize(16)
    raw = centres(image.convert("RGB"))
    profile = rgb_profile(*SPACES["display-p3"])
    made = pixels(encoded(image, "PNG", icc_profile=profile))
    assert np.abs(made - in_srgb(raw, *SPACES["display-p3"])).max() <= WITHIN


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_pictures_are_converted_too(mode: str) -> None:
    grey = patches().convert("L")
    made = pixels(encoded(grey.convert(mode), "PNG", icc_profile=grey_profile(1.0)))
    levels = centres(grey.convert("RGB"))
    assert np.abs(made - in_srgb(levels, SRGB, D65, 1.0)).max() <= WITHIN


def test_a_grey_picture_may_have_a_profile_for_colours() -> None:
    grey = patches().convert("L")
    profile = rgb_profile(*SPACES["linear"])
    made = pixels(encoded(grey, "JPEG", quality=98, icc_profile=profile))
    raw = pixels(encoded(grey, "JPEG", quality=98))
    assert np.abs(made - in_srgb(raw, SRGB, D65, 1.0)).max() <= WITHIN


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_converted_by_the_printers_profile(kind: str) -> None:
    inks = Image.merge("CMYK", [*patches().split(), patches().convert("L").point(lambda v: v // 3)])
    options = {"quality": 98} if kind == "JPEG" else {}
    profile = cmyk_profile()
    data = encoded(inks, kind, icc_profile=profile, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageCms.profileToProfile(
            opened,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    assert expected is not None
    made = pixels(data)
    assert np.abs(made - centres(expected)).max() <= WITHIN
    assert np.abs(made - pixels(encoded(inks, kind, **options))).max() > 20


def test_a_large_picture_is_converted_too() -> None:
    image = patches((3000, 2000))
    profile = rgb_profile(*SPACES["display-p3"])
    raw = pixels(encoded(image, "JPEG", quality=95))
    made = pixels(encoded(image, "JPEG", quality=95, icc_profile=profile))
    assert np.abs(made - in_srgb(raw, *SPACES["display-p3"])).max() <= WITHIN


def test_a_profile_of_more_than_a_megabyte_is_applied() -> None:
    profile = rgb_profile(*SPACES["swapped"])
    size = 2_000_000
    padded = size.to_bytes(4) + profile[4:] + bytes(size - len(profile))
    made = pixels(encoded(patches(), "PNG", icc_profile=padded))
    assert np.abs(made - in_srgb(centres(patches()), *SPACES["swapped"])).max() <= WITHIN


def broken_profiles() -> dict[str, bytes]:
    """Profiles that cannot be used."""
    good = rgb_profile(*SPACES["swapped"])
    black = bytearray(good)
    for place in [found.end() for found in re.finditer(rb"XYZ \0\0\0\0", good)][:3]:
        black[place : place + 12] = bytes(12)
    random = np.random.default_rng(1)
    return {
        "cut-in-half": good[: len(good) // 2],
        "no-tags": good[:128] + bytes(4),
        "header-only": good[:128],
        "other-space": good[:16] + b"Lab " + good[20:],
        "grey-for-colours": grey_profile(1.0),
        "inks-for-colours": cmyk_profile(),
        "noise": random.bytes(3000),
        "noise-in-a-header": good[:128] + random.bytes(len(good) - 128),
        "all-black": bytes(black),
        "short-tags": good[:-40],
    }


@pytest.mark.parametrize("name", broken_profiles())
def test_a_profile_that_cannot_be_used_is_ignored(name: str) -> None:
    plain = normalize(encoded(patches(), "PNG"), max_pixels=PIXELS)
    made = normalize(
        encoded(patches(), "PNG", icc_profile=broken_profiles()[name]), max_pixels=PIXELS
    )
    assert made == plain
