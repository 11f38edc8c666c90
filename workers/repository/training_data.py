"""What the trainer asks the database: who may train, what can be learnt from, and what a generation holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.records import BoolArray, FloatArray, HalfArray, IntArray
from workers.repository.connection import Connection, row, rows

_PAGE = 5000


@dataclass(frozen=True, slots=True)
class IndexedImages:
    """The images of a generation in ascending key: (M,) keys, leaves and suffixes of their identifiers, whether each was
    trained on, and whether it has captions to train on. 26 bytes an image."""

    image_keys: IntArray
    leaves: IntArray
    suffixes: IntArray
    trained: BoolArray
    captioned: BoolArray


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """N images as a generation ranks them. Rows of images deleted meanwhile are zero."""

    embeddings: HalfArray
    """(N, D)"""
    confidences: FloatArray
    """(N,)"""
    present: BoolArray
    """(N,) whether the image is stored still"""


def claim_trainer(conn: Connection) -> bool:
    """Whether this connection's process is the trainer from now on; nobody else is until it ends or gives up."""
    found = row(conn, "trainer_lock")
    return bool(found and found[0])


def release_trainer(conn: Connection) -> None:
    """Let others train."""
    rows(conn, "trainer_unlock")


def trainable_keys(conn: Connection, limit: int, seed: int) -> IntArray:
    """Ascending keys of images with captions; a seeded sample of `limit` when there are more."""
    pages = [
        np.array([key for (key,) in page], np.int64) for page in _pages(conn, "trainable_keys")
    ]
    return sampled(np.concatenate([np.empty(0, np.int64), *pages]), limit, seed)


def indexed_images(conn: Connection, generation: int) -> IndexedImages:
    """All that a generation holds, read page by page."""
    pages = [
        np.array(page, dtype=np.int64).reshape(-1, 5)
        for page in _pages(conn, "indexed_images", generation=generation)
    ]
    table = np.concatenate([np.empty((0, 5), np.int64), *pages])
    keys, leaves, suffixes, trained, captioned = (
        np.ascontiguousarray(column) for column in table.T
    )
    return IndexedImages(
        keys, leaves, suffixes, trained.astype(np.bool_), captioned.astype(np.bool_)
    )


def untrained_images(conn: Connection, generation: int) -> int:
    """How many images of a generation could be trained on and were not."""
    found = row(conn, "untrained_images", generation=generation)
    return int(found[0]) if found else 0


def embeddings_of(conn: Connection, generation: int, image_keys: IntArray) -> StoredEmbeddings:
    """Ranking embeddings and confidences of images, in the order of the keys."""
    wanted = image_keys.tolist()
    found = {}
    for start in range(0, len(wanted), _PAGE):
        page = rows(
            conn,
            "embeddings_of_images",
            generation=generation,
            image_keys=wanted[start : start + _PAGE],
        )
        found.update(
            {key: (np.frombuffer(value, "<f2"), confidence) for key, value, confidence in page}
        )
    width = next((len(vector) for vector, _ in found.values()), 0)
    nothing = np.zeros(width, np.float16), 0.0
    pairs = [found.get(key, nothing) for key in wanted]
    vectors = (
        np.stack([vector for vector, _ in pairs]) if pairs else np.zeros((0, width), np.float16)
    )
    return StoredEmbeddings(
        vectors.astype(np.float16, copy=False),
        np.array([confidence for _, confidence in pairs], np.float32),
        np.array([key in found for key in wanted], np.bool_),
    )


def sampled(values: IntArray, limit: int, seed: int) -> IntArray:
    """The values in their order, a seeded sample of `limit` when there are more."""
    if len(values) <= limit:
        return values
    return values[np.sort(np.random.default_rng(seed).permutation(len(values))[:limit])]


def _pages(conn: Connection, query: str, **parameters: int) -> Iterator[Sequence[tuple[int, ...]]]:
    after = 0
    while found := rows(conn, query, after=after, amount=_PAGE, **parameters):
        after = found[-1][0]
        yield found
