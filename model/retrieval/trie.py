"""The trie in memory: which leaves exist, and which images are posted under them.

It follows inserts and deletes without a rebuild. Two halves. *Structure*
(`model.retrieval.branches`): which prefixes have leaves below them. *Content*: postings by leaf, an
immutable base in CSR form plus a small delta that is merged when it has grown. An image is an int32
*slot*, its row in the ranking embeddings: a posting costs 14 bytes.

One thread owns a trie; it applies changes between batches of queries.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.retrieval.branches import Branches
from schemas.errors import RefuseToStartError
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, FloatArray, IntArray

Int32Array = npt.NDArray[np.int32]
Int16Array = npt.NDArray[np.int16]

# In place of a suffix: the posting is an alternate.
ALTERNATE = -1

# Suffixes that a shape may have: a posting keeps its suffix in two bytes.
SUFFIX_LIMIT = np.iinfo(np.int16).max

# Postings that the delta may hold at least before a merge: merging rewrites the whole base.
_MIN_DELTA = 4096

# The delta may grow to 1/8 of the base, so that a posting is rewritten O(log N) times in all.
_DELTA_SHARE = 8


@dataclass(frozen=True, slots=True)
class _Postings:
    """P postings, as narrow as the base stores them."""

    leaves: IntArray
    """(P,) int64"""
    slots: Int32Array
    """(P,)"""
    weights: FloatArray
    """(P,) float32"""
    suffixes: Int16Array
    """(P,)"""

    @classmethod
    def of(
        cls,
        leaves: IntArray | Sequence[int],
        slots: IntArray | Sequence[int],
        weights: FloatArray | Sequence[float],
        suffixes: IntArray | Sequence[int],
    ) -> "_Postings":
        """Narrow four columns of P values."""
        return cls(
            np.asarray(leaves, np.int64),
            np.asarray(slots, np.int32),
            np.asarray(weights, np.float32),
            np.asarray(suffixes, np.int16),
        )

    @classmethod
    def joined(cls, parts: Sequence["_Postings"]) -> "_Postings":
        """All parts, one behind the other."""
        return cls(
            np.concatenate([part.leaves for part in parts]),
            np.concatenate([part.slots for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.suffixes for part in parts]),
        )

    def taken(self, rows: npt.NDArray[np.int64] | BoolArray) -> "_Postings":
        """Some of the postings, by row or by mask."""
        return _Postings(
            self.leaves[rows],
            self.slots[rows],
            self.weights[rows],
            self.suffixes[rows],
        )


class _Base:
    """Postings sorted by leaf; those of a leaf are rows `offsets[leaf]:offsets[leaf + 1]`."""

    def __init__(self, shape: IdentifierShape, postings: _Postings) -> None:
        """Sort the postings; those of one leaf keep their order."""
        order = np.argsort(postings.leaves, kind="stable")
        self.offsets: IntArray = np.zeros(shape.leaves + 1, dtype=np.int64)
        """(leaves + 1,)"""
        loads = np.bincount(postings.leaves, minlength=shape.leaves)
        np.cumsum(loads, out=self.offsets[1:])
        self.slots = postings.slots[order]
        self.weights = postings.weights[order]
        self.suffixes = postings.suffixes[order]
        self._by_slot = np.argsort(self.slots, kind="stable").astype(np.int32)
        """(P,) rows in order of their slot: they find the postings of a deleted image."""

    def postings(self) -> _Postings:
        """All of them, sorted by leaf."""
        leaves = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return _Postings(leaves, self.slots, self.weights, self.suffixes)

    def rows_of_slots(self, slots: IntArray) -> IntArray:
        """Rows of all postings of some slots."""
        # Few images go at a time: binary searches cost less than a mask over all postings.
        begin = np.searchsorted(self.slots, slots, side="left", sorter=self._by_slot)
        end = np.searchsorted(self.slots, slots, side="right", sorter=self._by_slot)
        return self._by_slot[_ranges(begin, end - begin)].astype(np.int64)

    def leaves_of_rows(self, rows: IntArray) -> IntArray:
        """The leaf of each row."""
        return (np.searchsorted(self.offsets, rows, side="right") - 1).astype(np.int64)


class _LatePosting(NamedTuple):
    """A posting of the delta. A tuple, because thousands are made between two queries."""

    slot: int
    weight: float
    suffix: int


@dataclass(frozen=True, slots=True)
class Reached:
    """Members of some leaves, P postings."""

    slots: IntArray
    """(P,) int64"""
    weights: FloatArray
    """(P,) float32"""
    source: IntArray
    """(P,) which of the leaves asked for, counted from 0"""


class Trie:
    """All postings of one generation.

    `branches` counts every posting, `primaries` the primary ones only (the paper's trie), without
    those whose suffix lies beyond the shape.
    """

    def __init__(self, shape: IdentifierShape, device: torch.device | None = None) -> None:
        if shape.suffixes > SUFFIX_LIMIT:
            raise RefuseToStartError(
                f"the number of suffixes must be at most {SUFFIX_LIMIT:,}, got"
                f" {shape.suffixes:,}; lower it and train again"
            )
        self.shape = shape
        place = device or torch.device("cpu")
        self.branches = Branches(shape, place)
        self.primaries = Branches(shape, place)
        self.images = 0
        self._base = _Base(shape, _Postings.of([], [], [], []))
        self._delta: dict[int, list[_LatePosting]] = {}
        """Postings since the last merge, by leaf."""
        self._delta_leaves: dict[int, list[int]] = {}
        """Leaves of those postings, by slot."""
        self._delta_size = 0
        # Deleted images stay in the base until the next merge; this mask hides them.
        self._dead: BoolArray = np.zeros(0, dtype=np.bool_)

    def insert(
        self,
        leaves: IntArray,
        slots: IntArray,
        weights: FloatArray,
        suffixes: IntArray,
    ) -> None:
        """Add P postings; suffix `ALTERNATE` marks an alternate.

        A slot is used for one image only, ever: that of a deleted image is not reused.
        """
        if not len(leaves):
            return
        self._grow(int(slots.max()) + 1)
        # A slot that was deleted before it came is not that of a deleted image.
        self._dead[slots] = False
        # All suffixes beyond the shape are alike here: no mode decodes them, and they have no end.
        suffixes = np.minimum(suffixes, self.shape.suffixes)
        self.branches.add(leaves, 1)
        self.primaries.add(leaves[self._decodable(suffixes)], 1)
        self.images += int((suffixes != ALTERNATE).sum())
        # A bulk load is one sort; posting by posting it would take many times as long.
        if len(leaves) > _MIN_DELTA:
            self._merge(_Postings.of(leaves, slots, weights, suffixes))
            return
        columns = (leaves.tolist(), slots.tolist(), weights.tolist(), suffixes.tolist())
        for leaf, slot, weight, suffix in zip(*columns, strict=True):
            self._delta.setdefault(leaf, []).append(_LatePosting(slot, weight, suffix))
            self._delta_leaves.setdefault(slot, []).append(leaf)
        self._delta_size += len(leaves)
        if self._delta_size > max(_MIN_DELTA, len(self._base.slots) // _DELTA_SHARE):
            self._merge(_Postings.of([], [], [], []))

    def delete(self, slots: Iterable[int]) -> None:
        """Remove images with all their postings; unknown and removed slots are ignored."""
        doomed = self._alive_among(slots)
        if not len(doomed):
            return
        rows = self._base.rows_of_slots(doomed)
        base_leaves = self._base.leaves_of_rows(rows)
        late_leaves, late_suffixes = self._remove_late(doomed)
        self._dead[doomed] = True
        leaves = np.concatenate([base_leaves, late_leaves])
        suffixes = np.concatenate([self._base.suffixes[rows], late_suffixes])
        self.branches.add(leaves, -1)
        self.primaries.add(leaves[self._decodable(suffixes)], -1)
        # Every image has exactly one primary, so these count the images that went.
        self.images -= int((suffixes != ALTERNATE).sum())

    def posted(self, slots: Iterable[int]) -> tuple[IntArray, IntArray]:
        """Leaf and slot (P,) of each posting of some images; deleted ones have none."""
        alive = self._alive_among(slots)
        rows = self._base.rows_of_slots(alive)
        leaves = self._base.leaves_of_rows(rows).tolist()
        owners = self._base.slots[rows].tolist()
        for slot in alive.tolist():
            late = self._delta_leaves.get(slot, ())
            leaves += late
            owners += [slot] * len(late)
        return np.array(leaves, np.int64), np.array(owners, np.int64)

    def reached(self, leaves: IntArray) -> Reached:
        """Every posting under the (L,) leaves."""
        base = self._base
        begin = base.offsets[leaves]
        count = base.offsets[leaves + 1] - begin
        rows = _ranges(begin, count)
        slots = base.slots[rows].astype(np.int64)
        source = np.repeat(np.arange(len(leaves)), count)
        alive = ~self._dead[slots]
        settled = Reached(slots[alive], base.weights[rows][alive], source[alive])
        late = self._reached_late(leaves)
        if late is None:
            return settled
        return Reached(
            slots=np.concatenate([settled.slots, late.slots]),
            weights=np.concatenate([settled.weights, late.weights]),
            source=np.concatenate([settled.source, late.source]),
        )

    def searchable_slots(self) -> IntArray:
        """Slots of all images that have a posting, (N,) int64 ascending."""
        occupied = np.flatnonzero(self.branches.load)
        return np.unique(self.reached(occupied).slots)

    def suffixes(self, leaf: int) -> dict[int, int]:
        """Suffix → slot of the images whose primary is in the leaf, less those beyond the shape."""
        base = self._base
        slot_of: dict[int, int] = {}
        for row in range(int(base.offsets[leaf]), int(base.offsets[leaf + 1])):
            slot = int(base.slots[row])
            if not self._dead[slot]:
                slot_of[int(base.suffixes[row])] = slot
        for posting in self._delta.get(leaf, ()):
            slot_of[posting.suffix] = posting.slot
        slot_of.pop(ALTERNATE, None)
        slot_of.pop(self.shape.suffixes, None)
        return slot_of

    def _decodable(self, suffixes: IntArray | Int16Array) -> BoolArray:
        """Which of the (P,) suffixes the model has a token for."""
        return np.asarray((suffixes != ALTERNATE) & (suffixes < self.shape.suffixes))

    def _reached_late(self, leaves: IntArray) -> Reached | None:
        """Postings of the delta under the (L,) leaves, None without any."""
        slots: list[int] = []
        weights: list[float] = []
        source: list[int] = []
        for place, leaf in enumerate(leaves.tolist()):
            for posting in self._delta.get(leaf, ()):
                slots.append(posting.slot)
                weights.append(posting.weight)
                source.append(place)
        if not slots:
            return None
        return Reached(
            np.array(slots, np.int64),
            np.array(weights, np.float32),
            np.array(source, np.int64),
        )

    def _alive_among(self, slots: Iterable[int]) -> IntArray:
        """Those of the slots that an image has, each once."""
        alive = []
        for slot in dict.fromkeys(slots):
            if slot < len(self._dead) and not self._dead[slot]:
                alive.append(slot)
        return np.array(alive, dtype=np.int64)

    def _remove_late(self, slots: IntArray) -> tuple[IntArray, IntArray]:
        """Take slots out of the delta; (P,) leaves and suffixes of their postings."""
        leaves: list[int] = []
        suffixes: list[int] = []
        for slot in slots.tolist():
            for leaf in self._delta_leaves.pop(slot, ()):
                for posting in self._remove_from_leaf(leaf, slot):
                    leaves.append(leaf)
                    suffixes.append(posting.suffix)
        return np.array(leaves, dtype=np.int64), np.array(suffixes, dtype=np.int64)

    def _remove_from_leaf(self, leaf: int, slot: int) -> list[_LatePosting]:
        """Take a slot out of one leaf of the delta; the postings it had there."""
        postings = self._delta.pop(leaf)
        removed = [posting for posting in postings if posting.slot == slot]
        kept = [posting for posting in postings if posting.slot != slot]
        if kept:
            self._delta[leaf] = kept
        self._delta_size -= len(removed)
        return removed

    def _merge(self, arrived: _Postings) -> None:
        """Make a new base of the old one, the delta and what arrived, without the dead."""
        base = self._base.postings()
        alive = ~self._dead[base.slots]
        parts = [base.taken(alive), self._late_postings(), arrived]
        self._base = _Base(self.shape, _Postings.joined(parts))
        self._delta = {}
        self._delta_leaves = {}
        self._delta_size = 0

    def _late_postings(self) -> _Postings:
        """The delta as columns."""
        leaves: list[int] = []
        slots: list[int] = []
        weights: list[float] = []
        suffixes: list[int] = []
        for leaf, postings in self._delta.items():
            for posting in postings:
                leaves.append(leaf)
                slots.append(posting.slot)
                weights.append(posting.weight)
                suffixes.append(posting.suffix)
        return _Postings.of(leaves, slots, weights, suffixes)

    def _grow(self, size: int) -> None:
        """Make the mask long enough for slots below `size`; it doubles, so growth costs little."""
        if size > len(self._dead):
            missing = max(size, 2 * len(self._dead)) - len(self._dead)
            self._dead = np.concatenate([self._dead, np.zeros(missing, dtype=np.bool_)])


def _ranges(begin: IntArray, count: IntArray) -> IntArray:
    """Join the ranges begin[i], begin[i] + 1, … of count[i] numbers each."""
    total = int(count.sum())
    before = np.cumsum(count) - count
    return np.arange(total, dtype=np.int64) - np.repeat(before - begin, count)
