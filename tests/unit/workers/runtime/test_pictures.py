"""How large pictures are stored."""

import pytest

from workers.runtime.pictures import picture_px


@pytest.mark.parametrize(
    ("encoder_px", "kept"), [(0, 448), (224, 448), (336, 448), (384, 512), (512, 683), (640, 854)]
)
def test_the_shorter_side_of_a_photo_fills_what_the_encoder_reads(
    encoder_px: int, kept: int
) -> None:
    assert picture_px(None, encoder_px) == kept
    assert kept * 3 // 4 >= encoder_px


def test_what_was_asked_for_goes_before() -> None:
    assert picture_px(300, 512) == 300
    assert picture_px(2000, 0) == 2000
