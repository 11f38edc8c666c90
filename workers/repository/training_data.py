"""What the trainer asks the database: who may train, what can be learnt from, what is indexed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.records import BoolArray, FloatArray, HalfArray, IntArray
from workers.repository.connection import Connection, fetch_row, fetch_rows

# Rows read at a time; bounds the memory of the Python objects that psycopg makes of them.
_PAGE_ROWS = 5000


@dataclass(frozen=True, slots=True)
class IndexedImages:
    """The M images of a generation in ascending key. 25 bytes an image."""

    image_keys: IntArray
    """(M,)"""
    leaves: IntArray
    """(M,) leaf of each identifier"""
    suffixes: IntArray
    """(M,) suffix of each identifier"""
    trained: BoolArray
    """(M,) whether the generation was trained on it"""


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """N images as a generation ranks them. Rows of images deleted meanwhile are zero."""

    embeddings: HalfArray
    """(N, D)"""
    confidences: FloatArray
    """(N,)"""
    present: BoolArray
    """(N,) whether the image is still stored"""


# Name of the lease of the only process that trains.
TRAINER = "trainer"


def trainable_keys(conn: Connection, limit: int, seed: int) -> IntArray:
    """Return ascending keys of the images in the store; a seeded sample of `limit` if more."""
    pages = [np.empty(0, np.int64)]
    for rows in _pages(conn, "trainable_keys"):
        pages.append(np.array(rows, np.int64)[:, 0])
    return sampled(np.concatenate(pages), limit, seed)


def indexed_images(conn: Connection, generation: int) -> IndexedImages:
    """Return all images of a generation, read page by page."""
    pages = [np.empty((0, 4), np.int64)]
    for rows in _pages(conn, "indexed_images", generation=generation):
        pages.append(np.array(rows, np.int64))
    table = np.concatenate(pages)
    # Copies of the columns: views would keep the whole table in memory.
    return IndexedImages(
        image_keys=table[:, 0].copy(),
        leaves=table[:, 1].copy(),
        suffixes=table[:, 2].copy(),
        trained=table[:, 3].astype(np.bool_),
    )


def untrained_images(conn: Connection, generation: int) -> int:
    """Count the images of a generation that were not trained on."""
    row = fetch_row(conn, "untrained_images", generation=generation)
    return int(row[0]) if row else 0


def embeddings_of(conn: Connection, generation: int, image_keys: IntArray) -> StoredEmbeddings:
    """Return ranking embeddings and confidences of (N,) image keys, in their order."""
    wanted = image_keys.tolist()
    vectors: dict[int, HalfArray] = {}
    confidence_of: dict[int, float] = {}
    for start in range(0, len(wanted), _PAGE_ROWS):
        page = wanted[start : start + _PAGE_ROWS]
        rows = fetch_rows(conn, "embeddings_of_images", generation=generation, image_keys=page)
        for key, embedding, confidence in rows:
            vectors[key] = np.frombuffer(embedding, "<f2")
            confidence_of[key] = confidence
    # All embeddings of a generation have the same width; 0 when none is stored.
    width = len(next(iter(vectors.values()), ()))
    embeddings = np.zeros((len(wanted), width), np.float16)
    confidences = np.zeros(len(wanted), np.float32)
    present = np.zeros(len(wanted), np.bool_)
    for row, key in enumerate(wanted):
        if key in vectors:
            embeddings[row] = vectors[key]
            confidences[row] = confidence_of[key]
            present[row] = True
    return StoredEmbeddings(embeddings, confidences, present)


def sampled(values: IntArray, limit: int, seed: int) -> IntArray:
    """Return the values in their order, a seeded sample of `limit` if there are more."""
    if len(values) <= limit:
        return values
    chosen = np.random.default_rng(seed).permutation(len(values))[:limit]
    # Positions in order, so that the sample keeps the order of the values.
    return values[np.sort(chosen)]


def _pages(conn: Connection, query: str, **parameters: int) -> Iterator[Sequence[tuple[int, ...]]]:
    """Pages of a query that is ordered by its first column, the image key."""
    after = 0
    while rows := fetch_rows(conn, query, after=after, amount=_PAGE_ROWS, **parameters):
        after = rows[-1][0]
        yield rows
