"""`sigma bench trie`: the trie beside a frozen one that is rebuilt at every change.

And its lookup of allowed children beside a walk through nested dictionaries.
"""

import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch

from model.retrieval.trie import Trie
from ops.bench.comparison import Comparison
from schemas.identifiers import IdentifierShape
from schemas.records import IntArray

# The paper's codes (appendix E).
SHAPE = IdentifierShape((64, 32, 16, 32), 64)

# Postings: a small collection and one that no dictionary walk is comfortable with.
SIZES = (100_000, 1_000_000)

# 16 queries of 20 beams each, the largest batch of a query worker.
_BEAMS = 320

# Repetitions of a cheap operation; the median is reported.
_REPEATS = 30

# Repetitions of a rebuild, which takes seconds.
_REBUILDS = 3

# Milliseconds of a second.
_MS = 1e3

# A trie of dictionaries: code → the codes behind it.
NestedCodes = dict[int, "NestedCodes"]


def trie(seed: int) -> list[Comparison]:
    """Compare inserts, deletes and lookups at each of `SIZES`."""
    comparisons = []
    for size in SIZES:
        # Random leaves: no prefix is much fuller than another.
        leaves = np.random.default_rng(seed).integers(0, SHAPE.leaves, size)
        live = _filled(leaves)
        comparisons += _compare_changes(live, leaves)
        comparisons.append(_compare_children(live, leaves))
    return comparisons


def _compare_changes(live: Trie, leaves: IntArray) -> list[Comparison]:
    """One insert and one delete, each beside a rebuild from all (P,) leaves."""
    size = len(leaves)
    # Each image is inserted and deleted once only: to repeat it would change nothing.
    new_slots = count(size)
    old_slots = count(0)
    rebuild_s = _median_seconds(lambda: _filled(leaves), _REBUILDS)
    seconds = {
        "insert": _median_seconds(lambda: _insert_next(live, new_slots), _REPEATS),
        "delete": _median_seconds(lambda: _delete_next(live, old_slots), _REPEATS),
    }
    comparisons = []
    for operation, operation_s in seconds.items():
        comparison = Comparison(
            name=f"{operation} one image, {size:,} there",
            ours=operation_s * _MS,
            peer=rebuild_s * _MS,
            peer_name="rebuild of a frozen trie",
            unit="ms",
            n=size,
        )
        comparisons.append(comparison)
    return comparisons


def _compare_children(live: Trie, leaves: IntArray) -> Comparison:
    """Allowed children of 320 beams at the third level: one gather, beside dictionary walks."""
    nested = _nested(leaves)
    leaves_per_prefix = SHAPE.leaves // SHAPE.prefixes(2)
    prefixes = torch.from_numpy(leaves[:_BEAMS] // leaves_per_prefix)
    pairs = []
    for prefix in prefixes.tolist():
        pairs.append(divmod(prefix, SHAPE.codes[1]))

    def walk() -> None:
        mask = torch.zeros(_BEAMS, SHAPE.codes[2], dtype=torch.bool)
        for row, (first, second) in enumerate(pairs):
            mask[row, list(nested[first][second])] = True

    gather_s = _median_seconds(lambda: live.branches.children(2, prefixes), _REPEATS)
    walk_s = _median_seconds(walk, _REPEATS)
    return Comparison(
        name=f"children of {_BEAMS} beams, {len(leaves):,} there",
        ours=gather_s * _MS,
        peer=walk_s * _MS,
        peer_name="nested dictionaries",
        unit="ms",
        n=len(leaves),
    )


def _filled(leaves: IntArray) -> Trie:
    """A trie with one primary posting in each of (P,) leaves; its slot is its row."""
    size = len(leaves)
    filled = Trie(SHAPE)
    filled.insert(leaves, np.arange(size), np.zeros(size, np.float32), np.zeros(size, np.int64))
    return filled


def _nested(leaves: IntArray) -> NestedCodes:
    """The same leaves as nested dictionaries."""
    root: NestedCodes = {}
    for codes in zip(*np.unravel_index(leaves, SHAPE.codes), strict=True):
        node = root
        for code in codes:
            node = node.setdefault(int(code), {})
    return root


def _insert_next(live: Trie, slots: Iterator[int]) -> None:
    slot = next(slots)
    leaf = slot % SHAPE.leaves
    live.insert(np.array([leaf]), np.array([slot]), np.zeros(1, np.float32), np.zeros(1, np.int64))


def _delete_next(live: Trie, slots: Iterator[int]) -> None:
    live.delete([next(slots)])


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    # Not the mean: an insert may merge the delta into the base, which rewrites all postings.
    return float(np.median(times))
