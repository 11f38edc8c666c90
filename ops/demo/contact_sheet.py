"""A contact sheet: queries with the pictures that answer them, as one PNG file.

`python -m ops.demo.contact_sheet OUT.png QUERY…` asks the index in `SIGMA_HOME`. It made
docs/images/answers.png.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ops.embedded.database import open_services
from ops.query_client import CommandLineQuery, ask
from schemas.errors import SigmaError
from schemas.settings import Settings
from workers.repository.stored_images import images_by_id
from workers.runtime.pictures import read_picture

# Answers shown for each query.
PICTURES = 6

# Side of a picture on the sheet: that of the demo's scenes.
TILE_PX = 112

# Height of the line that holds a query.
GAP_PX = 10
CAPTION_PX = 26

FONT_PX = 15

# What stands below a picture, where it has a label.
LABEL_PX = 16
LABEL_FONT_PX = 11
LABEL_CHARACTERS = 19

PAPER = (255, 255, 255)
INK = (30, 34, 44)

# Frame of the picture that was asked for.
FOUND = (20, 140, 60)
FRAME_PX = 3


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """One query and its pictures, best first."""

    query: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str] = ()
    """What stands below each picture; nothing stands there without labels."""
    found: int | None = None
    """Place of the picture that was asked for, from 0; None when it is not among them."""


def draw_sheet(rows: Sequence[AnsweredRow]) -> Image.Image:
    """Draw the rows below each other as one RGB picture."""
    label_px = LABEL_PX if any(row.labels for row in rows) else 0
    row_height = CAPTION_PX + TILE_PX + label_px + GAP_PX
    width = GAP_PX + PICTURES * (TILE_PX + GAP_PX)
    sheet = Image.new("RGB", (width, GAP_PX + len(rows) * row_height), PAPER)
    for number, row in enumerate(rows):
        _draw_row(sheet, row, GAP_PX + number * row_height)
    return sheet


def _draw_row(sheet: Image.Image, row: AnsweredRow, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP_PX, top), row.query, INK, ImageFont.load_default(FONT_PX))
    small = ImageFont.load_default(LABEL_FONT_PX)
    for column, picture in enumerate(row.pictures[:PICTURES]):
        left = GAP_PX + column * (TILE_PX + GAP_PX)
        sheet.paste(_tile(picture), (left, top + CAPTION_PX))
        bottom = top + CAPTION_PX + TILE_PX
        if column == row.found:
            frame = (left - FRAME_PX, top + CAPTION_PX - FRAME_PX, left + TILE_PX, bottom)
            pen.rectangle(frame, outline=FOUND, width=FRAME_PX)
        if row.labels:
            pen.text((left, bottom + 1), row.labels[column][:LABEL_CHARACTERS], INK, small)


def _tile(picture: Image.Image) -> Image.Image:
    """Shrink to fit a square, without distortion."""
    tile = Image.new("RGB", (TILE_PX, TILE_PX), PAPER)
    small = picture.convert("RGB")
    small.thumbnail((TILE_PX, TILE_PX))
    tile.paste(small, ((TILE_PX - small.width) // 2, (TILE_PX - small.height) // 2))
    return tile


def answered_rows(settings: Settings, queries: Sequence[str]) -> list[AnsweredRow]:
    """Ask the queries and read the pictures of their answers from the store."""
    answers = [ask(settings, CommandLineQuery(text, PICTURES, None, "fused")) for text in queries]
    rows = []
    with open_services(settings) as services, services.connect("contact sheet") as conn:
        for answer in answers:
            image_ids = [result["image_id"] for result in answer["results"]]
            stored = images_by_id(conn, image_ids)
            pictures = []
            for image_id in image_ids:
                pixels = read_picture(services.store, stored[image_id].normalized_uri)
                pictures.append(Image.fromarray(pixels))
            rows.append(AnsweredRow(answer["query"], pictures))
    return rows


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Write the sheet."""
    parser = ArgumentParser(description="Queries with the pictures that answer them, as a PNG.")
    parser.add_argument("out", type=Path)
    parser.add_argument("queries", nargs="+")
    options = parser.parse_args(arguments)
    try:
        rows = answered_rows(Settings.from_environment(environ), options.queries)
    except SigmaError as error:
        print(f"contact sheet: {error}", file=sys.stderr)
        return error.exit_code
    draw_sheet(rows).save(options.out)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
