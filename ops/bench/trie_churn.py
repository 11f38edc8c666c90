"""Churn: images go and as many come, again and again. What an image costs in memory must not grow.

A day of it is a few hours of a busy index. The order in which images go is random, so that slots
are used again in an order that has nothing to do with the keys of those who get them.
"""

from collections.abc import Callable

import numpy as np

from model.retrieval.trie import Trie
from ops.bench.comparison import Comparison
from schemas.records import IntArray
from workers.query.slot_map import SlotMap

# How often all images are exchanged.
ROUNDS = 3

# Images that come, or go, at once.
_SLICE_IMAGES = 64

# Exchanged images at most: each takes 0.2 ms.
_MOST_EXCHANGED = 200_000


# Puts images with postings into (n,) slots of a trie.
InsertImages = Callable[[Trie, IntArray], None]


class Churn:
    """A trie and the keys of its images."""

    def __init__(self, live: Trie, size: int, insert: InsertImages, seed: int) -> None:
        """`live` has slots 0 to `size` - 1; `insert` puts images into (n,) slots."""
        self.live = live
        self.keys = SlotMap()
        self.keys.add(np.arange(size), np.arange(size))
        self._insert = insert
        self._rng = np.random.default_rng(seed)
        self._key_of = np.arange(size)
        """(N,) keys by slot."""
        self._next_key = size

    @property
    def image_bytes(self) -> float:
        """Bytes of memory an image."""
        return (self.live.nbytes + self.keys.nbytes) / self.live.images

    def exchange(self, count: int) -> None:
        """Delete `count` images and insert as many, in slices."""
        doomed = self._rng.permutation(len(self._key_of))[:count]
        for begin in range(0, count, _SLICE_IMAGES):
            slots = doomed[begin : begin + _SLICE_IMAGES]
            self.live.delete(slots.tolist())
            self.keys.remove(self._key_of[slots])
            come = np.arange(self._next_key, self._next_key + len(slots))
            self._next_key += len(slots)
            self.keys.add(come, slots)
            self._key_of[slots] = come
            self._insert(self.live, slots)


def compare_churn(churn: Churn, size: int) -> list[Comparison]:
    """Bytes an image after each round, beside those before the first."""
    before = churn.image_bytes
    count = min(size, _MOST_EXCHANGED // ROUNDS)
    comparisons = []
    for number in range(1, ROUNDS + 1):
        churn.exchange(count)
        label = f"bytes an image, {size:,}, {number * count:,} exchanged"
        comparisons.append(
            Comparison(label, churn.image_bytes, before, "before", "B", number * count)
        )
    return comparisons
