"""Hostile bytes: what is an image becomes a plain picture, all else a reason; the worker lives."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import RejectInputError
from stream.images.decode_pool import DecodeLimits, DecodePool
from stream.images.decode_protocol import LONGEST_SIDE
from stream.images.decode_watchdog import Watchdog
from stream.images.normalize import normalize
from tests.heic_grid import grid_heic
from tests.hostile import CONVERTIBLE, REFUSED, encoded, picture, rotated

# Most pixels allowed.
PIXELS = DecodeLimits().max_pixels
# Most memory allowed beyond that of a warm decoder.
PEAK_BYTES = 256 << 20
# 49 million pixels in a square, just under what is allowed.
SIDE = 7000


class Warm:
    """A decoder that has decoded before, with the process and the memory that it then had."""

    def __init__(self, pool: DecodePool) -> None:
        self.pool = pool
        pool.decode(CONVERTIBLE["plain.jpg"]())
        self.pid, self.bytes = self._peak()

    def assert_unharmed(self) -> None:
        """The process is the same, and never took more memory than is allowed."""
        pid, most = self._peak()
        assert pid == self.pid
        assert most - self.bytes <= PEAK_BYTES

    def _peak(self) -> tuple[int, int]:
        """Process id, and the most bytes that it ever had in memory."""
        process = self.pool._idle.get()
        self.pool._idle.put(process)
        assert process is not None
        pid = process._process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        assert peak is not None
        return pid, int(peak[1]) * 1024


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """One warm decoder with the default limits."""
    with DecodePool() as pool:
        yield Warm(pool)


def large(mode: str, kind: str, **options: object) -> bytes:
    """A blank picture as large as is allowed."""
    options = {"compress_level": 1, **options} if kind == "PNG" else options
    return encoded(Image.new(mode, (SIDE, SIDE)), kind, **options)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_a_convertible_image_becomes_plain_rgb(name: str) -> None:
    normalized = normalize(CONVERTIBLE[name](), max_pixels=PIXELS)
    image = Image.open(io.BytesIO(normalized.png))
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    assert sorted(image.size) == [60, 80]
    assert np.asarray(image).std() > 5


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_with_a_reason(name: str) -> None:
    code, make = REFUSED[name]
    with pytest.raises(RejectInputError) as refused:
        normalize(make(), max_pixels=PIXELS, memory_bytes=PEAK_BYTES)
    assert refused.value.code == code
    assert len(str(refused.value)) > 20


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_image_costs_little_time_and_memory_and_the_decoder_stays(
    name: str, warm: Warm
) -> None:
    hostile = REFUSED[name][1]()
    started = time.monotonic()
    with pytest.raises(RejectInputError) as refused:
        warm.pool.decode(hostile)
    assert time.monotonic() - started < 5
    assert refused.value.code == REFUSED[name][0]
    warm.assert_unharmed()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGB", "PNG", {"transparency": (0, 0, 0)}),
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
    ],
)
def test_the_largest_pictures_allowed_are_decoded_in_little_memory(
    mode: str, kind: str, options: dict[str, object], warm: Warm
) -> None:
    normalized = warm.pool.decode(large(mode, kind, **options))
    assert (normalized.width, normalized.height) == (SIDE, SIDE)
    warm.assert_unharmed()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("RGB", "WEBP", {"lossless": True, "method": 0}),
    ],
)
def test_what_would_take_too_much_memory_is_refused_by_its_header(
    mode: str, kind: str, options: dict[str, object], warm: Warm
) -> None:
    with pytest.raises(RejectInputError, match="MiB to decode") as refused:
        warm.pool.decode(large(mode, kind, **options))
    assert refused.value.code == "out-of-memory"
    warm.assert_unharmed()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_a_large_picture_is_the_same_when_it_is_converted_in_strips(mode: str) -> None:
    size = (5400, 3700)
    if mode == "I;16":
        image = Image.fromarray(
            np.linspace(0, 65535, size[0] * size[1]).reshape(size[::-1]).astype(np.uint16)
        )
    elif mode == "P":
        image = picture(1, size).quantize(16)
    else:
        image = picture(1, size).convert("RGBA" if mode == "LA" else mode).convert(mode)
    made = np.asarray(
        Image.open(
            io.BytesIO(normalize(encoded(image, "PNG", compress_level=1), max_pixels=PIXELS).png)
        ),
        dtype=int,
    )
    whole = (
        image.point(lambda value: value / 257 + 0).convert("L")
        if mode == "I;16"
        else image.convert("RGB")
    )
    whole.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    assert np.abs(made - np.asarray(whole.convert("RGB"), dtype=int)).mean() < 2


# Pixels of a phone with 50 megapixels.
PHONE = (8160, 6144)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "PNG", {"compress_level": 1}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("P", "GIF", {}),
        ("1", "BMP", {}),
    ],
)
def test_a_phones_picture_of_50_megapixels_is_taken_by_default(
    mode: str, kind: str, options: dict[str, object], warm: Warm
) -> None:
    made = warm.pool.decode(encoded(Image.new(mode, PHONE), kind, **options))
    assert (made.width, made.height, made.format) == (*PHONE, kind)
    warm.assert_unharmed()


@pytest.mark.parametrize("turns", [0, 1])
def test_a_phones_heic_of_50_megapixels_is_taken_by_default(turns: int, warm: Warm) -> None:
    made = warm.pool.decode(grid_heic(PHONE, (200, 90, 30), turns=turns))
    size = PHONE if turns == 0 else PHONE[::-1]
    assert (made.width, made.height, made.format) == (*size, "HEIF")
    shown = np.asarray(Image.open(io.BytesIO(made.png)), dtype=int)
    assert np.abs(shown - (200, 90, 30)).max() <= 4
    warm.assert_unharmed()


def test_large_pictures_of_all_kinds_one_after_another_find_room() -> None:
    files = [
        grid_heic(PHONE, (1, 2, 3)),
        encoded(Image.new("RGB", PHONE), "JPEG", progressive=True),
        encoded(Image.new("RGB", PHONE), "PNG", compress_level=1),
        encoded(Image.new("RGB", PHONE), "TIFF", compression="jpeg"),
        *(make() for make in CONVERTIBLE.values()),
    ]
    with DecodePool() as pool:
        for _ in range(3):
            for data in files:
                pool.decode(data)


def test_a_picture_on_its_side_is_turned_upright() -> None:
    normalized = normalize(rotated(), max_pixels=PIXELS)
    assert (normalized.width, normalized.height) == (60, 80)
    assert Image.open(io.BytesIO(normalized.png)).size == (60, 80)


def test_a_large_picture_is_kept_small_and_its_size_remembered() -> None:
    normalized = normalize(encoded(picture(1, (1600, 1200)), "JPEG"), max_pixels=PIXELS)
    assert (normalized.width, normalized.height) == (1600, 1200)
    assert max(Image.open(io.BytesIO(normalized.png)).size) == LONGEST_SIDE


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    normalized = normalize(encoded(clear, "PNG"), max_pixels=PIXELS)
    assert np.asarray(Image.open(io.BytesIO(normalized.png))).min() == 255


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
        process = pool._idle.get()
        assert process is not None
        os.kill(process._process.pid, signal.SIGKILL)
        pool._idle.put(process)
        deadline = time.monotonic() + 5
        while process.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.decode(CONVERTIBLE["plain.jpg"]()).format == "JPEG"


BUSY = "import time; began = time.process_time()\nwhile time.process_time() - began < 60: pass"
ASLEEP = "import time; time.sleep(60)"


@pytest.mark.parametrize("program", [BUSY, ASLEEP])
def test_a_process_that_computes_or_sleeps_for_too_long_is_ended(program: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with Watchdog(process, 0.2) as watchdog:
        process.wait(timeout=60)
    assert process.stdout is not None
    process.stdout.close()
    assert watchdog.overdue


def test_a_process_that_only_waits_for_its_turn_is_left_alone() -> None:
    # Stopped for longer than its limit, as on a machine with other things to do.
    process = subprocess.Popen([sys.executable, "-c", ASLEEP])
    with Watchdog(process, 0.5) as watchdog, pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    assert not watchdog.overdue
    process.kill()
    process.wait()


def test_a_picture_is_kept_as_large_as_the_encoder_reads_it() -> None:
    data = encoded(picture(1, (1600, 1200)), "JPEG")
    with DecodePool() as pool:
        normalized = pool.decode(data, 768)
        usual = pool.decode(data)
    assert Image.open(io.BytesIO(normalized.png)).size == (768, 576)
    assert (normalized.width, normalized.height) == (1600, 1200)
    assert Image.open(io.BytesIO(usual.png)).size == (LONGEST_SIDE, 336)
