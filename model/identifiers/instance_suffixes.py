"""Instance suffixes of a training set: id5, unique inside its leaf; a full leaf spills to its nearest relative."""

from dataclasses import dataclass

import numpy as np

from schemas.errors import UsageError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import IntArray


@dataclass(frozen=True, slots=True)
class Suffixed:
    """`leaves` and `suffixes` (N,) int64, and how many images did not fit their own leaf."""

    leaves: IntArray
    suffixes: IntArray
    spilled: int


def assign_suffixes(leaves: IntArray, shape: IdentifierShape) -> Suffixed:
    """Suffixes 0, 1, … in row order inside each leaf. Rows beyond the capacity move to the nearest leaf in the tree that
    has room: same id1..id3 first, then same id1..id2, then same id1, then anywhere."""
    if len(leaves) > shape.leaves * shape.suffixes:
        raise UsageError(
            f"{len(leaves)} images do not fit {shape.leaves} leaves of {shape.suffixes} suffixes; raise a level's count"
        )
    placed = leaves.astype(np.int64).copy()
    suffixes = np.zeros(len(leaves), dtype=np.int64)
    used: dict[int, int] = {}
    waiting: list[int] = []
    for row, leaf in enumerate(placed.tolist()):
        taken = used.get(leaf, 0)
        if taken < shape.suffixes:
            suffixes[row], used[leaf] = taken, taken + 1
        else:
            waiting.append(row)
    for row in waiting:
        leaf = _relative_with_room(int(placed[row]), used, shape)
        placed[row], suffixes[row] = leaf, used.get(leaf, 0)
        used[leaf] = used.get(leaf, 0) + 1
    return Suffixed(leaves=placed, suffixes=suffixes, spilled=len(waiting))


def keep_suffixes(leaves: IntArray, suffixes: IntArray, shape: IdentifierShape) -> Suffixed:
    """Suffixes for rows whose suffix is -1, beside rows that keep theirs: the lowest that is free in the leaf, and a full
    leaf spills as in `assign_suffixes`. (N,) int64 each; rows that keep a suffix are never moved."""
    if len(leaves) > shape.leaves * shape.suffixes:
        raise UsageError(
            f"{len(leaves)} images do not fit {shape.leaves} leaves of {shape.suffixes} suffixes; raise a level's count"
        )
    placed, given = leaves.astype(np.int64).copy(), suffixes.astype(np.int64).copy()
    taken: dict[int, set[int]] = {}
    for leaf, suffix in zip(placed[given >= 0].tolist(), given[given >= 0].tolist(), strict=True):
        taken.setdefault(leaf, set()).add(suffix)
    used = {leaf: len(some) for leaf, some in taken.items()}
    lowest: dict[int, int] = {}
    waiting: list[int] = []

    def stand(row: int, leaf: int) -> None:
        suffix = lowest.get(leaf, 0)
        while suffix in taken.get(leaf, ()):
            suffix += 1
        placed[row], given[row] = leaf, suffix
        lowest[leaf], used[leaf] = suffix + 1, used.get(leaf, 0) + 1

    for row in np.flatnonzero(given < 0).tolist():
        if used.get(int(placed[row]), 0) < shape.suffixes:
            stand(row, int(placed[row]))
        else:
            waiting.append(row)
    for row in waiting:
        stand(row, _relative_with_room(int(placed[row]), used, shape))
    return Suffixed(leaves=placed, suffixes=given, spilled=len(waiting))


def relatives(leaf: int, shape: IdentifierShape, limit: int) -> list[int]:
    """Up to `limit` other leaves, nearest in the tree first: where an image goes when `leaf` is full."""
    found: list[int] = []
    below, width = 1, 1
    for level in range(LEVELS, 0, -1):
        width *= shape.codes[level - 1]
        start = leaf // width * width
        inner = leaf // below * below
        for other in range(start, start + width):
            if not inner <= other < inner + below:
                found.append(other)
                if len(found) == limit:
                    return found
        below = width
    return found


def _relative_with_room(leaf: int, used: dict[int, int], shape: IdentifierShape) -> int:
    limit = 64
    while True:
        for other in relatives(leaf, shape, limit):
            if used.get(other, 0) < shape.suffixes:
                return other
        limit *= 16
