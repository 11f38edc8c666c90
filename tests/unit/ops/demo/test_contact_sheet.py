"""The contact sheet shows each query above its pictures, best first."""

from PIL import Image

from ops.demo.contact_sheet import (
    CAPTION_PX,
    GAP_PX,
    PAPER,
    PICTURES,
    TILE_PX,
    AnsweredRow,
    draw_sheet,
)

RED = (255, 0, 0)
BLUE = (0, 0, 255)


def test_pictures_stand_in_their_order_below_their_query() -> None:
    pictures = [Image.new("RGB", (300, 300), RED), Image.new("RGB", (300, 300), BLUE)]
    sheet = draw_sheet([AnsweredRow("a query", pictures)])
    row = GAP_PX + CAPTION_PX + TILE_PX // 2
    first, second = GAP_PX + TILE_PX // 2, 2 * GAP_PX + TILE_PX + TILE_PX // 2
    assert sheet.getpixel((first, row)) == RED
    assert sheet.getpixel((second, row)) == BLUE
    assert sheet.getpixel((second + GAP_PX + TILE_PX, row)) == PAPER


def test_a_wide_picture_keeps_its_shape() -> None:
    sheet = draw_sheet([AnsweredRow("a query", [Image.new("RGB", (400, 100), RED)])])
    left, top = GAP_PX + TILE_PX // 2, GAP_PX + CAPTION_PX
    assert sheet.getpixel((left, top + TILE_PX // 2)) == RED
    assert sheet.getpixel((left, top + 5)) == PAPER


def test_no_more_pictures_are_shown_than_fit() -> None:
    many = [Image.new("RGB", (10, 10), RED)] * (PICTURES + 3)
    assert draw_sheet([AnsweredRow("a query", many)]).width == GAP_PX + PICTURES * (
        TILE_PX + GAP_PX
    )
