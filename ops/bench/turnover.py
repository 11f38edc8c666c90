"""`sigma bench turnover`: many days of arrivals and deletions, applied to one index of a worker.

As many images come as go, in turn, in commits and slices as a query worker applies them: trie,
embeddings' file, prefix means, sketches and metadata. What the process has in memory must not grow,
and an image must not take longer.
"""

import gc
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil

from model.network.sketch import Sketch
from ops.bench.comparison import Comparison
from ops.bench.stored_generation import WIDTH, distinct_leaves
from ops.bench.trie import POSTINGS, SHAPE, SkewedPostings
from schemas.metadata import Metadata
from schemas.records import HalfArray, IntArray
from workers.query.gallery import Gallery
from workers.query.generation_index import GenerationIndex
from workers.query.residents import SLICE_IMAGES
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows

# Images that come, and that go, without `--images`.
DEFAULT_IMAGES = 1_000_000

# How often all images of the index are exchanged for others. Their share of all is what it holds.
_TURNS = 10

# Images of a commit.
_COMMIT_IMAGES = 4096

# One image of so many has metadata, of which a text is its own: what nobody has any more must go.
_DESCRIBED = 4

# Vectors that the directions of sketches are found from.
_SKETCHED = 1024

# What is measured after each turn, and its unit.
PARTS = (("process", "MiB"), ("arrays", "MiB"), ("rows of embeddings", "rows"))

# Milliseconds of a second, and bytes of a MiB.
_MS = 1e3
_MIB = 1 << 20


def turnover(images: int, seed: int) -> list[Comparison]:
    """Let `images` come and go in an index of a tenth as many; memory and speed of each turn."""
    with tempfile.TemporaryDirectory(prefix="sigma-bench-") as name:
        exchange = Turnover(Path(name), max(1, images // _TURNS), seed)
        memory, milliseconds = [], []
        for _ in range(_TURNS):
            began = time.thread_time()
            exchange.turn()
            milliseconds.append((time.thread_time() - began) * _MS / exchange.size)
            memory.append(exchange.memory())
        exchange.index.close()
    comparisons = []
    for turn, own in enumerate(memory[1:], 2):
        done = turn * exchange.size
        for part, unit in PARTS:
            # Of what the arrays hold the end tells all.
            if part == "process" or turn == _TURNS:
                label = f"{part}, {done:,} came and went"
                # The first turn brings every image into another's place once, which takes memory.
                comparisons.append(
                    Comparison(label, own[part], memory[0][part], "first turn", unit, done)
                )
    label = f"an image comes and another goes, {len(milliseconds) * exchange.size:,}"
    comparisons.append(
        Comparison(label, milliseconds[-1], milliseconds[0], "first turn", "CPU ms", exchange.size)
    )
    return comparisons


class Turnover:
    """An index of `size` images, all of which are exchanged for others in each turn."""

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        self.size = size
        self._postings = SkewedPostings(seed)
        self._rng = np.random.default_rng(seed)
        sketch = Sketch.fit(self._vectors(_SKETCHED), seed)
        self.index = GenerationIndex(SHAPE, WIDTH, Gallery.open(folder), guided=True, sketch=sketch)
        self._next_key = 1
        self.there: IntArray = np.zeros(0, np.int64)
        """(N,) keys of the images that are in the index."""
        for begin in range(0, size, _COMMIT_IMAGES):
            come = self._come(min(_COMMIT_IMAGES, size - begin))
            self._apply(come, np.zeros(0, np.int64))
            self.there = np.concatenate([self.there, come])

    def turn(self) -> None:
        """Every image goes, in an order that has nothing to do with its coming; others come."""
        doomed = self._rng.permutation(self.there)
        arrived = []
        for begin in range(0, len(doomed), _COMMIT_IMAGES):
            gone = np.sort(doomed[begin : begin + _COMMIT_IMAGES])
            arrived.append(self._come(len(gone)))
            self._apply(arrived[-1], gone)
        self.there = np.concatenate(arrived)

    def memory(self) -> dict[str, float]:
        """By part: what only this process has in memory, our arrays, rows of the file."""
        gc.collect()
        # The file of embeddings is shared memory.
        held = psutil.Process().memory_info()
        own = (self.index.trie, self.index.gallery, self.index.metadata, self.index.sketches)
        arrays = sum(part.nbytes for part in own if part is not None)
        return {
            "process": (held.rss - held.shared) / _MIB,
            "arrays": arrays / _MIB,
            "rows of embeddings": float(self.index.gallery.size),
        }

    def _come(self, count: int) -> IntArray:
        """The ascending (n,) keys of new images."""
        keys = np.arange(self._next_key, self._next_key + count)
        self._next_key += count
        return keys

    def _apply(self, come: IntArray, gone: IntArray) -> None:
        changes = Changes(
            postings=self._posted(come),
            embeddings=self._embedded(come),
            deleted=gone,
            metadata=_described(come),
        )
        for part in changes.slices(SLICE_IMAGES):
            self.index.apply(part)

    def _posted(self, keys: IntArray) -> PostingRows:
        leaves = distinct_leaves(self._postings, len(keys)).ravel()
        suffixes = np.where(
            np.arange(len(leaves)) % POSTINGS,
            -1,
            self._rng.integers(SHAPE.suffixes, size=len(leaves)),
        )
        weights = -self._rng.random(len(leaves)).astype(np.float32)
        return PostingRows(leaves, np.repeat(keys, POSTINGS), weights, suffixes)

    def _embedded(self, keys: IntArray) -> EmbeddingRows:
        ones = np.ones(len(keys), np.float32)
        return EmbeddingRows(keys, self._vectors(len(keys)), -ones, ones.astype(np.bool_))

    def _vectors(self, count: int) -> HalfArray:
        """(N, D) of unit length."""
        vectors = self._rng.standard_normal((count, WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float16)


def _described(keys: IntArray) -> Mapping[int, Metadata]:
    """Metadata of some images, by key."""
    chosen = keys[keys % _DESCRIBED == 0].tolist()
    return {
        key: {"camera": f"camera {key % 50}", "serial": str(key), "year": key} for key in chosen
    }
