"""The contact sheet of a corpus benchmark: queries with the pictures that answer them, for eyes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ops.bench.corpus_manifests import Entries
from ops.demo.contact_sheet import PICTURES, AnsweredRow, draw_sheet
from schemas.records import ManifestEntry
from workers.query.engine import QueryEngine
from workers.query.searcher import Searcher
from workers.repository.connection import Connection
from workers.repository.stored_images import StoredImage, images_by_id
from workers.runtime.pictures import read_picture

# Colours of the file: drawings and small photos keep their look, and a page stays small.
_COLOURS = 128

DEFAULT_ROWS = 10


@dataclass(frozen=True, slots=True)
class SheetConfig:
    """Which sheet to draw."""

    file: Path
    rows: int = DEFAULT_ROWS
    """Queries drawn from the images that arrived later, where none is given."""
    queries: tuple[str, ...] = ()
    """Queries of a person's choice."""


def draw_answers(
    searcher: Searcher[QueryEngine],
    conn: Connection,
    entries: Entries,
    config: SheetConfig,
    seed: int,
) -> None:
    """Ask, and write the answers as a PNG file; the picture that was asked for has a frame."""
    asked = [AskedText(text) for text in config.queries] or _sample(entries, config.rows, seed)
    rows = [_answered(searcher, conn, query) for query in asked]
    config.file.parent.mkdir(parents=True, exist_ok=True)
    small = draw_sheet(rows).quantize(_COLOURS, dither=Image.Dither.NONE)
    small.save(config.file, format="PNG", optimize=True)


def _answered(searcher: Searcher[QueryEngine], conn: Connection, query: "AskedText") -> AnsweredRow:
    (answer,) = searcher.search([query.text], PICTURES)
    image_ids = [hit.image_id for hit in answer.hits]
    stored = images_by_id(conn, image_ids)
    pictures: list[Image.Image] = []
    labels: list[str] = []
    for rank, image_id in enumerate(image_ids, start=1):
        image = stored[image_id]
        pictures.append(Image.fromarray(read_picture(searcher.store, image.normalized_uri)))
        labels.append(f"{rank} {_name_of(image)}")
    found = image_ids.index(query.image_id) if query.image_id in image_ids else None
    return AnsweredRow(query.text, pictures, labels, found)


@dataclass(frozen=True, slots=True)
class AskedText:
    """A query, and the image that it was written for; None where a person chose it."""

    text: str
    image_id: str | None = None


def _sample(entries: Sequence[ManifestEntry], rows: int, seed: int) -> list[AskedText]:
    """Queries of images that arrived later."""
    asked = [entry for entry in entries if entry.queries]
    order = np.random.default_rng(seed).permutation(len(asked))[:rows]
    return [AskedText(asked[row].queries[0], asked[row].image_id) for row in order.tolist()]


def _name_of(image: StoredImage) -> str:
    """What its owner calls a picture: a caption, or the end of its id."""
    texts = image.captions or image.test_captions
    return texts[0] if texts else image.image_id.rsplit("/", 1)[-1]
