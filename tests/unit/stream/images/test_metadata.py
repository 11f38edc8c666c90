"""Only pixels decide: whatever a picture's metadata says, the picture is taken, and upright."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from schemas.errors import RejectInputError
from stream.images.decode_pool import DecodeLimits
from stream.images.normalize import normalize
from tests.broken_metadata import broken_metadata, clean, decoded, exif
from tests.hostile import encoded, heic, picture

PIXELS = DecodeLimits().max_pixels
BROKEN = broken_metadata()


@pytest.mark.parametrize("name", BROKEN)
def test_a_good_picture_is_taken_whatever_its_metadata_says(name: str) -> None:
    kind, make = BROKEN[name]
    made = normalize(make(), max_pixels=PIXELS)
    assert made == normalize(clean(kind), max_pixels=PIXELS)


def jpegs() -> dict[str, bytes]:
    """JPEGs of several kinds."""
    image = picture(5, (400, 300))
    return {
        "plain": encoded(image, "JPEG"),
        "progressive": encoded(image, "JPEG", progressive=True),
        "restarts": encoded(image, "JPEG", restart_marker_rows=1),
        "grey": encoded(image.convert("L"), "JPEG"),
        "ink": encoded(image.convert("CMYK"), "JPEG"),
        "full-colour": encoded(image, "JPEG", subsampling=0, quality=95),
        "flat": encoded(Image.new("RGB", (400, 300), "red"), "JPEG"),
    }


@pytest.mark.parametrize("name", jpegs())
def test_a_jpeg_that_lacks_only_its_end_marker_is_taken(name: str) -> None:
    whole = jpegs()[name]
    for cut in (whole[:-2], whole[:-1], whole[:-2] + bytes(100)):
        assert normalize(cut, max_pixels=PIXELS) == normalize(whole, max_pixels=PIXELS)


@pytest.mark.parametrize("name", jpegs())
def test_a_jpeg_that_is_cut_inside_its_picture_stays_refused(name: str) -> None:
    whole = jpegs()[name]
    start = whole.index(b"\xff\xda")
    # Up to where a few bits at most are missing.
    for share in np.linspace(0.02, 0.98, 25):
        cut = whole[: start + int((len(whole) - start) * share)]
        with pytest.raises(RejectInputError) as refused:
            normalize(cut, max_pixels=PIXELS)
        assert refused.value.code == "truncated", share


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP", "HEIF", "AVIF"])
def test_a_picture_that_is_cut_is_refused_as_cut(kind: str) -> None:
    image = picture(5, (400, 300))
    whole = heic(image) if kind == "HEIF" else encoded(image, kind)
    for share in (0.3, 0.5, 0.7, 0.9):
        with pytest.raises(RejectInputError) as refused:
            normalize(whole[: int(len(whole) * share)], max_pixels=PIXELS)
        assert refused.value.code == "truncated", share


def turned(kind: str, orientation: int) -> bytes:
    """A picture stored in one of the eight ways."""
    image = picture(30, (96, 64))
    told = exif((0x0112, 3, 1, bytes([orientation, 0])))
    if kind == "HEIF":
        return heic(image, exif=told)
    if kind == "TIFF":
        return encoded(image, kind, tiffinfo={0x0112: orientation})
    return encoded(image, kind, exif=told if kind == "PNG" else b"Exif\0\0" + told)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_a_picture_is_turned_upright_exactly_once(kind: str, orientation: int) -> None:
    reference = Image.new("RGB", (1, 1))
    told = reference.getexif()
    told[0x0112] = orientation
    stored = picture(30, (96, 64))
    stored.info["exif"] = told.tobytes()
    upright = ImageOps.exif_transpose(stored)
    made = normalize(turned(kind, orientation), max_pixels=PIXELS)
    assert (made.width, made.height) == upright.size
    difference = np.abs(np.asarray(decoded(made.png), dtype=int) - np.asarray(upright, dtype=int))
    assert difference.mean() < 8


def test_the_true_reason_is_told() -> None:
    good = encoded(picture(1), "PNG")
    palette = encoded(picture(1).quantize(16), "PNG")
    broken = palette.replace(b"PLTE", b"pLTE")
    assert palette != broken
    for data, words in [
        (good[:29] + b"\0\0\0\0" + good[33:], "checksum"),
        (broken, "palette"),
        (encoded(Image.new("RGB", (500, 2)), "PNG"), "250 times"),
    ]:
        with pytest.raises(RejectInputError, match=words):
            normalize(data, max_pixels=PIXELS)


def test_a_refusal_names_the_setting_and_its_value() -> None:
    data = encoded(picture(1), "PNG")
    with pytest.raises(RejectInputError, match="SIGMA_MAX_IMAGE_PIXELS=4000"):
        normalize(data, max_pixels=4000)
    with pytest.raises(RejectInputError, match="SIGMA_DECODE_MEMORY_BYTES=1000"):
        normalize(data, max_pixels=PIXELS, memory_bytes=1000)


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "AVIF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        made = decoded(normalize(buffer.getvalue(), max_pixels=PIXELS).png)
        red, _, blue = made.getpixel((40, 30))
        assert red > 240 > 15 > blue
