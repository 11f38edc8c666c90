"""Instance suffixes of a training set: id5, unique inside its leaf.

A leaf has as many suffixes as the shape says. An image that does not fit spills to the nearest leaf
in the tree that has room: same id1..id3 first, then same id1..id2, then same id1, then anywhere.
When no leaf has room, it stays in its own, under a suffix beyond the shape.
"""

from dataclasses import dataclass

import numpy as np

from schemas.errors import UsageError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import IntArray

# Nearest leaves looked at for room first; a crowded corner of the tree seldom needs more.
_FIRST_SEARCH = 64

# How many times as many are looked at next.
_SEARCH_GROWTH = 16


_NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SuffixAssignment:
    """A place for each of N images."""

    leaves: IntArray
    """(N,) int64"""
    suffixes: IntArray
    """(N,) int64"""
    spilled: int
    """Images that went to another leaf, because their own was full."""


def assign_suffixes(leaves: IntArray, shape: IdentifierShape) -> SuffixAssignment:
    """Suffixes 0, 1, … inside each of the (N,) leaves, in row order; what does not fit spills.

    `UsageError` when they do not fit the shape.
    """
    if len(leaves) > shape.leaves * shape.suffixes:
        raise UsageError(
            f"the shape has room for {shape.leaves * shape.suffixes:,} images, {shape.leaves:,}"
            f" leaves of {shape.suffixes}, so {len(leaves):,} images do not fit; raise a level's"
            " count"
        )
    return keep_suffixes(leaves, np.full(len(leaves), -1, dtype=np.int64), shape)


def keep_suffixes(leaves: IntArray, suffixes: IntArray, shape: IdentifierShape) -> SuffixAssignment:
    """Suffixes for rows whose suffix is -1, beside rows that keep theirs: the lowest free one.

    `leaves` and `suffixes` (N,) int64. What does not fit spills, or gets a suffix beyond the shape
    when no leaf has room; rows that keep a suffix stay.
    """
    kept = suffixes >= 0
    rooms = _Rooms(shape)
    for leaf, suffix in zip(leaves[kept].tolist(), suffixes[kept].tolist(), strict=True):
        rooms.keep(leaf, suffix)
    placed = leaves.astype(np.int64).copy()
    given = suffixes.astype(np.int64).copy()
    waiting: list[int] = []
    for row in np.flatnonzero(~kept).tolist():
        leaf = int(placed[row])
        if rooms.has_room(leaf):
            given[row] = rooms.take(leaf)
        else:
            waiting.append(row)
    # Only now, so that no image takes the place of one that belongs into the leaf.
    spilled = 0
    for row in waiting:
        leaf = int(placed[row])
        if rooms.free:
            leaf = rooms.nearest_with_room(leaf)
            placed[row] = leaf
            given[row] = rooms.take(leaf)
            spilled += 1
        else:
            given[row] = rooms.take_beyond(leaf)
    return SuffixAssignment(leaves=placed, suffixes=given, spilled=spilled)


def nearest_leaves(leaf: int, shape: IdentifierShape, limit: int) -> list[int]:
    """Up to `limit` other leaves, nearest in the tree first: where a full leaf's images go."""
    nearest: list[int] = []
    inner_width = 1
    for level in range(LEVELS, 0, -1):
        outer_width = inner_width * shape.codes[level - 1]
        # Leaves below a prefix are one range, and the prefix one shorter has a range around it.
        outer = leaf // outer_width * outer_width
        inner = leaf // inner_width * inner_width
        for other in range(outer, outer + outer_width):
            if not inner <= other < inner + inner_width:
                nearest.append(other)
                if len(nearest) == limit:
                    return nearest
        inner_width = outer_width
    return nearest


class _Rooms:
    """The suffixes of each leaf that are in use."""

    def __init__(self, shape: IdentifierShape) -> None:
        self._shape = shape
        self.free = shape.leaves * shape.suffixes
        """Suffixes that are not in use, of all leaves."""
        self._beyond: dict[int, int] = {}
        """The lowest suffix beyond the shape that was never in use, by leaf."""
        self._kept: dict[int, set[int]] = {}
        """Suffixes in use from the start, by leaf."""
        self._used: dict[int, int] = {}
        """Number of suffixes in use, by leaf."""
        self._lowest: dict[int, int] = {}
        """The suffix below which none is free, by leaf."""

    def keep(self, leaf: int, suffix: int) -> None:
        """Mark a suffix as in use, before any is taken."""
        if suffix >= self._shape.suffixes:
            self._beyond[leaf] = max(suffix + 1, self._beyond.get(leaf, 0))
            return
        kept = self._kept.setdefault(leaf, set())
        kept.add(suffix)
        self.free -= len(kept) - self._used.get(leaf, 0)
        self._used[leaf] = len(kept)

    def has_room(self, leaf: int) -> bool:
        """Whether a suffix of the leaf is free."""
        return self._used.get(leaf, 0) < self._shape.suffixes

    def take(self, leaf: int) -> int:
        """Use the lowest free suffix of a leaf that has room."""
        suffix = self._lowest.get(leaf, 0)
        kept = self._kept.get(leaf, _NOTHING)
        while suffix in kept:
            suffix += 1
        self._lowest[leaf] = suffix + 1
        self._used[leaf] = self._used.get(leaf, 0) + 1
        self.free -= 1
        return suffix

    def take_beyond(self, leaf: int) -> int:
        """Use the next suffix beyond the shape of a leaf."""
        suffix = self._beyond.get(leaf, self._shape.suffixes)
        self._beyond[leaf] = suffix + 1
        return suffix

    def nearest_with_room(self, leaf: int) -> int:
        """The nearest other leaf that has room; there must be one."""
        limit = _FIRST_SEARCH
        while True:
            for other in nearest_leaves(leaf, self._shape, limit):
                if self.has_room(other):
                    return other
            limit *= _SEARCH_GROWTH
