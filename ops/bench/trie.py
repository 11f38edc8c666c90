"""`sigma bench trie`: the live trie beside a frozen one that is rebuilt at every change, and beside a dictionary walk."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch

from model.retrieval.trie import Trie
from ops.bench.rows import Row
from schemas.identifiers import IdentifierShape
from schemas.records import IntArray

_SHAPE = IdentifierShape((64, 32, 16, 32), 64)
_BEAMS, _REPEATS = 320, 30


def trie(seed: int) -> list[Row]:
    """Rows at 100,000 and 1,000,000 postings in the paper's shape."""
    rows = []
    for size in (100_000, 1_000_000):
        leaves = np.random.default_rng(seed).integers(0, _SHAPE.leaves, size)
        live = _filled(leaves)
        rebuild = _seconds(partial(_filled, leaves), 3)
        insert = _seconds(partial(_insert, live, count(size)))
        rows.append(
            Row(
                f"insert one image, {size:,} there",
                insert * 1e3,
                rebuild * 1e3,
                "rebuild of a frozen trie",
                "ms",
                size,
            )
        )
        delete = _seconds(partial(_delete, live, count(0)))
        rows.append(
            Row(
                f"delete one image, {size:,} there",
                delete * 1e3,
                rebuild * 1e3,
                "rebuild of a frozen trie",
                "ms",
                size,
            )
        )
        rows.append(_children(live, leaves, size))
    return rows


def _children(live: Trie, leaves: IntArray, size: int) -> Row:
    """Allowed children of 320 beams at the third level: one gather, beside a walk through nested dictionaries."""
    nested: dict[int, Any] = {}
    for codes in zip(*np.unravel_index(leaves, _SHAPE.codes), strict=True):
        node = nested
        for code in codes:
            node = node.setdefault(int(code), {})
    prefixes = torch.from_numpy(leaves[:_BEAMS] // (_SHAPE.leaves // _SHAPE.prefixes(2)))
    pairs = [(int(p) // _SHAPE.codes[1], int(p) % _SHAPE.codes[1]) for p in prefixes]

    def walk() -> None:
        mask = torch.zeros(_BEAMS, _SHAPE.codes[2], dtype=torch.bool)
        for row, (first, second) in enumerate(pairs):
            mask[row, list(nested[first][second])] = True

    ours = _seconds(lambda: live.branches.children(2, prefixes))
    return Row(
        f"children of {_BEAMS} beams, {size:,} there",
        ours * 1e3,
        _seconds(walk) * 1e3,
        "nested dictionaries",
        "ms",
        size,
    )


def _filled(leaves: IntArray) -> Trie:
    made, size = Trie(_SHAPE), len(leaves)
    made.insert(leaves, np.arange(size), np.zeros(size, np.float32), np.zeros(size, np.int64))
    return made


def _insert(live: Trie, slots: Iterator[int]) -> None:
    slot = next(slots)
    live.insert(
        np.array([slot % _SHAPE.leaves]),
        np.array([slot]),
        np.zeros(1, np.float32),
        np.zeros(1, np.int64),
    )


def _delete(live: Trie, slots: Iterator[int]) -> None:
    live.delete([next(slots)])


def _seconds(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
