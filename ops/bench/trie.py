"""`sigma bench trie`: the live trie beside a frozen one, under inserts and deletes.

Leaves are skewed as those of real collections are, and every image has three postings. Medians, 99
of 100, and the worst of all: what queries wait for is the worst. Times are of the thread's
processor, so that what else the machine does is not counted.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch

from model.retrieval.trie import ALTERNATE, Trie
from ops.bench.comparison import Comparison
from ops.bench.frozen_trie import FrozenTrie
from ops.bench.marisa_peer import MarisaTrie, has_marisa
from ops.bench.trie_churn import Churn, compare_churn
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray
from workers.query.slot_map import SlotMap

# The paper's codes (appendix E).
SHAPE = IdentifierShape((64, 32, 16, 32), 64)

# Images, without `--images`.
SIZES = (50_000, 1_000_000)

# Postings of an image, the default of `SIGMAPOSTINGS`.
POSTINGS = 3

# Images that are loaded at a time, which bounds memory.
_CHUNK_IMAGES = 1_000_000

# The share of the leaf of rank r is in proportion to 1 / (r + 20) ** 0.8: of a million images'
# postings the fullest of a million leaves has 4,300, the mean leaf 4.
_SKEW_OFFSET = 20
_SKEW_POWER = 0.8

# Images of a slice of changes, and of a commit: a slice is applied between two batches of queries.
_SLICE_IMAGES = 64
_COMMIT_IMAGES = 4096

# Repetitions of what takes microseconds, and of what takes milliseconds.
_MANY = 2000
_SOME = 500

# Commits, and rebuilds of a frozen trie.
_COMMITS = 10
_REBUILDS = 3

# 16 queries of 20 beams each, the largest batch of a query worker.
_BEAMS = 320

# Images up to which marisa-trie is compared with: it takes a Python object for each posting.
_MOST_MARISA_IMAGES = 1_000_000

# Milliseconds of a second.
_MS = 1e3


class SkewedPostings:
    """Draws postings: a few leaves hold much, many hold little."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        shares = (np.arange(SHAPE.leaves) + _SKEW_OFFSET) ** -_SKEW_POWER
        self._cumulated = np.cumsum(shares) / shares.sum()
        # The full leaves are anywhere.
        self._leaf_of_rank = self._rng.permutation(SHAPE.leaves)

    def leaves(self, count: int) -> IntArray:
        """(P,) leaves."""
        ranks = np.searchsorted(self._cumulated, self._rng.random(count))
        return self._leaf_of_rank[np.minimum(ranks, SHAPE.leaves - 1)]

    def insert(self, live: Trie, first: int, count: int) -> Callable[[], None]:
        """Prepare the insert of `count` images from slot `first` on."""
        return self.insert_into(live, np.arange(first, first + count))

    def insert_into(self, live: Trie, images: IntArray) -> Callable[[], None]:
        """Prepare the insert of images in (n,) slots."""
        slots = np.repeat(images, POSTINGS)
        ranks = np.tile(np.arange(POSTINGS), len(images))
        weights = (-1.5 * ranks * self._rng.random(len(ranks))).astype(np.float32)
        suffixes = np.where(ranks == 0, slots % SHAPE.suffixes, ALTERNATE)
        return partial(live.insert, self.leaves(len(ranks)), slots, weights, suffixes)


def trie(seed: int, sizes: Sequence[int] = SIZES) -> list[Comparison]:
    """Compare changes, memory and lookups at each of `sizes` images."""
    comparisons = []
    for size in sizes:
        postings = SkewedPostings(seed)
        live = Trie(SHAPE)
        for first in range(0, size, _CHUNK_IMAGES):
            postings.insert(live, first, min(_CHUNK_IMAGES, size - first))()
        leaves = postings.leaves(size * POSTINGS)
        slots = np.arange(len(leaves)) // POSTINGS
        rebuild_ms = np.median(
            _milliseconds([partial(FrozenTrie, SHAPE, leaves, slots)] * _REBUILDS)
        )
        frozen = FrozenTrie(SHAPE, leaves, slots)
        comparisons.append(_compare_memory(live, frozen, size))
        comparisons += _compare_changes(live, postings, size, float(rebuild_ms))
        comparisons += _compare_children(live, frozen, leaves, size)
        if size <= _MOST_MARISA_IMAGES and has_marisa():
            comparisons += _compare_marisa(live, leaves, slots, size)
        comparisons += compare_churn(_new_churn(seed, size), size)
    return comparisons


def _new_churn(seed: int, size: int) -> Churn:
    postings, live = SkewedPostings(seed), Trie(SHAPE)
    for first in range(0, size, _CHUNK_IMAGES):
        postings.insert(live, first, min(_CHUNK_IMAGES, size - first))()
    return Churn(live, size, lambda trie, slots: postings.insert_into(trie, slots)(), seed)


def _compare_marisa(live: Trie, leaves: IntArray, slots: IntArray, size: int) -> list[Comparison]:
    """The same beside marisa-trie: memory, a change, and the codes that may follow."""
    began = time.thread_time()
    peer = MarisaTrie(SHAPE, leaves, slots)
    rebuild_ms = (time.thread_time() - began) * _MS
    prefixes = leaves[:_BEAMS] // (SHAPE.leaves // SHAPE.prefixes(2))
    tensor = torch.from_numpy(prefixes)
    ours = _milliseconds([lambda: live.branches.children(2, tensor) > 0] * _SOME)
    theirs = _milliseconds([partial(peer.children, 2, prefixes)] * _REBUILDS)
    own_bytes = live.nbytes / live.images
    # Slots that no insert before this has used.
    first = size + _MANY + _SLICE_IMAGES * _SOME + _COMMIT_IMAGES * _COMMITS
    postings = SkewedPostings(size)
    work = []
    for number in range(_SOME):
        work.append(postings.insert(live, first + number * _SLICE_IMAGES, _SLICE_IMAGES))
    change_ms = float(np.median(_milliseconds(work)))
    name = "marisa-trie"
    return [
        Comparison(
            f"bytes an image, {size:,}, marisa", own_bytes, peer.nbytes / size, name, "B", size
        ),
        Comparison(
            f"insert {_SLICE_IMAGES} images, {size:,}, marisa",
            change_ms,
            rebuild_ms,
            name,
            "ms",
            _SOME,
        ),
        Comparison(
            f"children of {_BEAMS} beams, {size:,}, p50, marisa",
            float(np.median(ours)),
            float(np.median(theirs)),
            name,
            "ms",
            _REBUILDS,
        ),
    ]


def _compare_memory(live: Trie, frozen: FrozenTrie, size: int) -> Comparison:
    """Postings, slots and keys, beside a frozen trie that can neither delete nor name an image."""
    keys = SlotMap()
    for first in range(0, size, _CHUNK_IMAGES):
        slots = np.arange(first, min(first + _CHUNK_IMAGES, size))
        keys.add(slots + 1, slots)
    ours = (live.nbytes + keys.nbytes) / size
    return Comparison(
        f"bytes an image, {size:,}", ours, frozen.nbytes / size, "frozen, no delete", "B", size
    )


def _compare_changes(
    live: Trie, postings: SkewedPostings, size: int, rebuild_ms: float
) -> list[Comparison]:
    """Inserts and deletes, each beside one rebuild of the frozen trie."""
    doomed = np.random.default_rng(size).permutation(size)[:_MANY].tolist()
    first = size
    comparisons = []
    for name, images, repeats in (
        ("insert 1 image", 1, _MANY),
        (f"insert {_SLICE_IMAGES} images", _SLICE_IMAGES, _SOME),
        (f"insert {_COMMIT_IMAGES} images", _COMMIT_IMAGES, _COMMITS),
    ):
        # Drawn before, so that only the trie is timed.
        work = []
        for _ in range(repeats):
            work.append(postings.insert(live, first, images))
            first += images
        comparisons += _quantiles(name, size, _milliseconds(work), rebuild_ms)
    deletes = [partial(live.delete, [slot]) for slot in doomed]
    return comparisons + _quantiles("delete 1 image", size, _milliseconds(deletes), rebuild_ms)


def _quantiles(
    name: str, size: int, milliseconds: FloatArray, rebuild_ms: float
) -> list[Comparison]:
    comparisons = []
    for quantile, value in (
        ("p50", np.median(milliseconds)),
        ("p99", np.quantile(milliseconds, 0.99)),
        ("worst", milliseconds.max()),
    ):
        label = f"{name}, {size:,}, {quantile}"
        n = len(milliseconds)
        comparisons.append(
            Comparison(label, float(value), rebuild_ms, "rebuild of a frozen trie", "ms", n)
        )
    return comparisons


def _compare_children(
    live: Trie, frozen: FrozenTrie, leaves: IntArray, size: int
) -> list[Comparison]:
    """Allowed codes of 320 beams below two codes: one gather, beside the frozen trie's."""
    prefixes = torch.from_numpy(leaves[:_BEAMS] // (SHAPE.leaves // SHAPE.prefixes(2)))
    rows = frozen.rows(prefixes)
    ours = _milliseconds([lambda: live.branches.children(2, prefixes) > 0] * _SOME)
    peer = _milliseconds([partial(frozen.children, 2, rows)] * _SOME)
    return [
        Comparison(
            f"children of {_BEAMS} beams, {size:,}, p50",
            float(np.median(ours)),
            float(np.median(peer)),
            "frozen trie",
            "ms",
            _SOME,
        )
    ]


def _milliseconds(work: Iterable[Callable[[], object]]) -> FloatArray:
    """How long each of several pieces of work takes the processor."""
    times = []
    for piece in work:
        began = time.thread_time()
        piece()
        times.append((time.thread_time() - began) * _MS)
    return np.array(times)
