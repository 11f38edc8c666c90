"""Hostile bytes: everything convertible becomes one plain picture, everything else a reason, and nothing takes the worker along."""

import io
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from schemas.errors import RejectInputError
from stream.decoding import DecodeLimits, DecodePool
from stream.pixels import LONGEST_SIDE, normalize
from tests.hostile import CONVERTIBLE, REFUSED, encoded, picture, rotated

PIXELS = 50_000_000


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_a_convertible_image_becomes_plain_rgb(name: str) -> None:
    made = normalize(CONVERTIBLE[name](), max_pixels=PIXELS)
    image = Image.open(io.BytesIO(made.png))
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    assert sorted(image.size) == [60, 80]
    assert np.asarray(image).std() > 5


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_with_a_reason(name: str) -> None:
    code, make = REFUSED[name]
    with pytest.raises(RejectInputError) as refused:
        normalize(make(), max_pixels=PIXELS)
    assert refused.value.code == code
    assert len(str(refused.value)) > 20


def test_a_picture_on_its_side_is_turned_upright() -> None:
    made = normalize(rotated(), max_pixels=PIXELS)
    assert (made.width, made.height) == (60, 80)
    assert Image.open(io.BytesIO(made.png)).size == (60, 80)


def test_a_large_picture_is_kept_small_and_its_size_remembered() -> None:
    made = normalize(encoded(picture(1, (1600, 1200)), "JPEG"), max_pixels=PIXELS)
    assert (made.width, made.height) == (1600, 1200)
    assert max(Image.open(io.BytesIO(made.png)).size) == LONGEST_SIDE


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    made = normalize(encoded(clear, "PNG"), max_pixels=PIXELS)
    assert np.asarray(Image.open(io.BytesIO(made.png))).min() == 255


def test_the_pool_decodes_refuses_and_goes_on() -> None:
    with DecodePool(processes=1) as pool:
        assert pool.decode(CONVERTIBLE["plain.jpg"]()).format == "JPEG"
        with pytest.raises(RejectInputError, match="no bytes"):
            pool.decode(b"")
        assert pool.decode(CONVERTIBLE["plain.png"]()).format == "PNG"


def test_too_many_bytes_never_reach_a_decoder() -> None:
    with DecodePool(DecodeLimits(max_bytes=10)) as pool, pytest.raises(RejectInputError) as refused:
        pool.decode(bytes(11))
    assert refused.value.code == "too-many-bytes"


def test_an_image_that_needs_too_much_memory_is_refused_and_the_next_one_decodes() -> None:
    wide = encoded(Image.new("RGB", (9000, 5000)), "PNG")
    with DecodePool(DecodeLimits(memory_bytes=32 << 20)) as pool:
        with pytest.raises(RejectInputError) as refused:
            pool.decode(wide)
        assert refused.value.code in ("out-of-memory", "decode-failed")
        assert pool.decode(CONVERTIBLE["plain.jpg"]()).format == "JPEG"


def test_a_decoder_that_dies_costs_one_image() -> None:
    with DecodePool() as pool:
        pool.decode(CONVERTIBLE["plain.jpg"]())
        child = pool._idle.get()
        assert child is not None
        os.kill(child._process.pid, signal.SIGKILL)
        pool._idle.put(child)
        deadline = time.monotonic() + 5
        while child.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.decode(CONVERTIBLE["plain.jpg"]()).format == "JPEG"
