"""A stored generation: any number of images in a real PostgreSQL, for benchmarks of size.

Rows are as wide as those of real images, embeddings are random, and leaves are skewed as those of
the trie's benchmark are.
"""

from collections.abc import Iterator

import numpy as np

from ops.bench.trie import POSTINGS, SHAPE, SkewedPostings
from schemas.records import IntArray
from workers.repository.bulk_load import InitialLoad
from workers.repository.connection import Connection, transaction

# Numbers of an embedding.
WIDTH = 128

# Images of a part, which bounds memory: the initial load of a training has as many.
PART_IMAGES = 100_000

# Two captions of usual length, and addresses as the store gives them.
_STORE_IMAGES = r"""
INSERT INTO image (image_id, version, uri, normalized_uri, checksum, digest, width, height,
                   captions, arrived_at, published_at, state, indexed_at)
SELECT 'bench-' || n, 1, 'file:///pictures/bench-' || n || '.jpg',
       regexp_replace(encode(sha256(n::text::bytea), 'hex'), '^(..)(.*)$', 'store:///\1/\2.png'),
       '', sha256(n::text::bytea), 640, 480,
       jsonb_build_array('a photograph of number ' || n || ' on a table',
                         'a table with the number ' || n || ' and a lamp'),
       now(), now(), CASE WHEN %s THEN 'indexed'::image_state ELSE 'accepted' END,
       CASE WHEN %s THEN now() END
FROM generate_series(%s::int, %s::int) AS n RETURNING image_key
"""


def store_images(conn: Connection, first: int, count: int, *, indexed: bool = False) -> IntArray:
    """Store `count` images that are in no generation; returns their (N,) keys.

    As accepted ones, which a training finds; or as an index worker stores arrivals: with `indexed`.
    """
    with transaction(conn):
        rows = conn.execute(_STORE_IMAGES, (indexed, indexed, first, first + count - 1)).fetchall()
    return np.array(rows, np.int64)[:, 0]


def distinct_leaves(skewed: SkewedPostings, count: int) -> IntArray:
    """(N, 3) leaves, no image twice under one."""
    leaves = skewed.leaves(count * POSTINGS).reshape(count, POSTINGS)
    while True:
        ordered = np.sort(leaves, axis=1)
        twice = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if not len(twice):
            return leaves
        leaves[twice] = skewed.leaves(len(twice) * POSTINGS).reshape(-1, POSTINGS)


class StoredPostings:
    """What the images of one generation are loaded with, part by part."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._skewed = SkewedPostings(seed)
        self._used = np.zeros(SHAPE.leaves, np.int64)
        """Primaries of each leaf."""

    def load(self, keys: IntArray) -> InitialLoad:
        """Postings and embeddings of images with ascending (N,) keys."""
        leaves = distinct_leaves(self._skewed, len(keys))
        vectors = self._rng.standard_normal((len(keys), WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        suffixes = np.full(leaves.shape, -1)
        suffixes[:, 0] = self._suffixes(leaves[:, 0])
        weights = -self._rng.random(leaves.shape).astype(np.float32)
        return InitialLoad(
            leaves=leaves.ravel(),
            posted_keys=np.repeat(keys, POSTINGS),
            weights=weights.ravel(),
            suffixes=suffixes.ravel(),
            image_keys=keys,
            embeddings=vectors.astype(np.float16),
            confidences=np.zeros(len(keys), np.float32),
        )

    def _suffixes(self, leaves: IntArray) -> IntArray:
        """(N,) numbers that are unique in their leaves."""
        order = np.argsort(leaves, kind="stable")
        ascending = leaves[order]
        begins = np.searchsorted(ascending, ascending)
        suffixes = np.empty_like(leaves)
        suffixes[order] = np.arange(len(leaves)) - begins + self._used[ascending]
        self._used += np.bincount(leaves, minlength=SHAPE.leaves)
        return suffixes


def parts(count: int) -> Iterator[tuple[int, int]]:
    """First number and size of each part of `count` images."""
    for first in range(0, count, PART_IMAGES):
        yield first, min(PART_IMAGES, count - first)
