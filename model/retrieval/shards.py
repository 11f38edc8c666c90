"""Shards: the content half of the trie, its postings by ranges of leaves.

A shard holds the postings of one range of leaves: a *base* sorted by leaf, and a *tail* of a few
that came later. When a tail is full, the shard alone is merged, so an insert costs the same in an
index of any size, and so does a delete, which leaves a *hole* in the base until the next merge.

A posting is six bytes: an *owner*, int32, which is the slot of its image if it is the primary and
the slot's complement if it is an alternate, and a weight in half precision.

Letters in shapes: P postings, L leaves, S shards, R leaves of a shard, T places of a tail.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.records import BoolArray, FloatArray, HalfArray, IntArray, NamedArrays

Int32Array = npt.NDArray[np.int32]
Leaf16Array = npt.NDArray[np.uint16]

# Shards at most: a shard's number fits 13 bits (`model.retrieval.slot_table`), and at ten million
# images with three postings each, one holds 3,700, which are merged in 0.04 ms.
_MOST_SHARDS = (1 << 13) - 1

# Postings of a tail: more make a merge rarer, and reading a leaf longer.
_TAIL = 32

# A base is merged when holes are more than a tail and more than this share of it.
_HOLE_SHARE = 1 / 8

# The owner of a posting that was deleted.
_HOLE = np.iinfo(np.int32).min

# Slots are lower: their complements are owners too, and none of them is the hole.
SLOT_LIMIT = int(np.iinfo(np.int32).max)

# The lowest weight of a posting. Of lower ones half precision makes -inf, which no sum survives.
_LEAST_WEIGHT = np.finfo(np.float16).min


@dataclass(frozen=True, slots=True)
class Reached:
    """Members of some leaves, P postings."""

    slots: IntArray
    """(P,) int64"""
    weights: FloatArray
    """(P,) float32"""
    source: IntArray
    """(P,) which of the leaves asked for, counted from 0"""

    def only(self, kept: BoolArray | IntArray) -> "Reached":
        """Some of the postings, by (P,) mask or by row."""
        return Reached(self.slots[kept], self.weights[kept], self.source[kept])


class Found(NamedTuple):
    """P postings of one image."""

    leaves: list[int]
    primary: list[bool]


class _Arrived(NamedTuple):
    """P postings, by ascending leaf."""

    places: Leaf16Array
    """(P,) leaves, counted from the first of their shard"""
    owners: Int32Array
    weights: HalfArray

    def part(self, begin: int, end: int) -> "_Arrived":
        """Some postings that follow each other."""
        return _Arrived(self.places[begin:end], self.owners[begin:end], self.weights[begin:end])


class _Located(NamedTuple):
    """Where a shard has postings of one image."""

    base: IntArray
    """rows of the base"""
    tail: IntArray
    """columns of the tail"""


class Shards:
    """Postings by leaf. It knows no image: whoever deletes one tells in which shards to look."""

    def __init__(self, leaves: int) -> None:
        self.range = -(-leaves // _MOST_SHARDS)
        """R, leaves of a shard; the last one may have fewer."""
        shards = -(-leaves // self.range)
        self._ends: Int32Array = np.zeros((shards, self.range), np.int32)
        """(S, R) where the rows of each leaf end in the base of its shard."""
        self._owners: list[Int32Array] = [np.empty(0, np.int32)] * shards
        self._weights: list[HalfArray] = [np.empty(0, np.float16)] * shards
        self._holes: Int32Array = np.zeros(shards, np.int32)
        self._tail_sizes: Int32Array = np.zeros(shards, np.int32)
        self._tail_places: Leaf16Array = np.zeros((shards, _TAIL), np.uint16)
        self._tail_owners: Int32Array = np.zeros((shards, _TAIL), np.int32)
        self._tail_weights: HalfArray = np.zeros((shards, _TAIL), np.float16)

    @property
    def rows(self) -> int:
        """Rows of all bases with their holes, and postings of all tails: what memory depends on."""
        return sum(map(len, self._owners)) + int(self._tail_sizes.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        tails = self._tail_places.nbytes + self._tail_owners.nbytes + self._tail_weights.nbytes
        bases = sum(part.nbytes for part in self._owners) + sum(
            part.nbytes for part in self._weights
        )
        by_shard = self._ends.nbytes + self._holes.nbytes + self._tail_sizes.nbytes
        return bases + tails + by_shard

    def to_arrays(self) -> NamedArrays:
        """All that it holds, for `restore`."""
        return {
            "ends": self._ends,
            "holes": self._holes,
            "base_sizes": np.array([len(base) for base in self._owners], np.int32),
            "owners": np.concatenate(self._owners),
            "weights": np.concatenate(self._weights),
            "tail_sizes": self._tail_sizes,
            "tail_places": self._tail_places,
            "tail_owners": self._tail_owners,
            "tail_weights": self._tail_weights,
        }

    def restore(self, arrays: NamedArrays) -> None:
        """Take over what other shards of as many leaves held."""
        for name in ("ends", "tail_places"):
            own = getattr(self, f"_{name}").shape
            if arrays[name].shape != own:
                raise ValueError(f"{name} must have shape {own}, got {arrays[name].shape}")
        self._ends = arrays["ends"].copy()
        self._holes = arrays["holes"].copy()
        ends = np.cumsum(arrays["base_sizes"])[:-1]
        # Copies: a view of one shard would keep the bases of all of them in memory.
        self._owners = [base.copy() for base in np.split(arrays["owners"], ends)]
        self._weights = [base.copy() for base in np.split(arrays["weights"], ends)]
        self._tail_sizes = arrays["tail_sizes"].copy()
        self._tail_places = arrays["tail_places"].copy()
        self._tail_owners = arrays["tail_owners"].copy()
        self._tail_weights = arrays["tail_weights"].copy()

    def shard_of(self, leaves: IntArray) -> IntArray:
        """The (P,) shards of leaves."""
        return leaves // self.range

    def insert(
        self, leaves: IntArray, slots: IntArray, weights: FloatArray, primary: BoolArray
    ) -> None:
        """Add (P,) postings; `primary` tells which of them are."""
        order = np.argsort(leaves, kind="stable")
        shards, places = np.divmod(leaves[order], self.range)
        slots = slots[order]
        arrived = _Arrived(
            places.astype(np.uint16),
            np.where(primary[order], slots, ~slots).astype(np.int32),
            np.maximum(weights[order], _LEAST_WEIGHT).astype(np.float16),
        )
        begins, counts = runs(shards)
        touched = shards[begins]
        fits = self._tail_sizes[touched] + counts <= _TAIL
        self._append(shards, begins, counts, np.repeat(fits, counts), arrived)
        full = ~fits
        columns = (touched[full].tolist(), begins[full].tolist(), counts[full].tolist())
        for shard, begin, count in zip(*columns, strict=True):
            self._merge(shard, arrived.part(begin, begin + count))

    def find(self, slot: int, shards: set[int]) -> Found:
        """The postings of an image in the shards that have them."""
        found = Found([], [])
        for shard in shards:
            self._add_located(found, shard, self._locate(slot, shard))
        return found

    def delete(self, slot: int, shards: set[int]) -> Found:
        """Remove the postings of an image from the shards that have them, and return them."""
        found = Found([], [])
        for shard in shards:
            located = self._locate(slot, shard)
            self._add_located(found, shard, located)
            self._shorten_tail(shard, located.tail)
            base = self._owners[shard]
            base[located.base] = _HOLE
            self._holes[shard] += len(located.base)
            if self._holes[shard] > max(_TAIL, _HOLE_SHARE * len(base)):
                self._merge(shard, _NOTHING)
        return found

    def reached(self, leaves: IntArray) -> Reached:
        """Every posting under the (L,) leaves."""
        shards, places = np.divmod(leaves, self.range)
        ends = self._ends[shards, places]
        begins = np.where(places > 0, self._ends[shards, places - 1], 0)
        owners = []
        weights = []
        for shard, begin, end in zip(shards.tolist(), begins.tolist(), ends.tolist(), strict=True):
            owners.append(self._owners[shard][begin:end])
            weights.append(self._weights[shard][begin:end])
        used = np.arange(_TAIL) < self._tail_sizes[shards][:, np.newaxis]
        same = self._tail_places[shards] == places[:, np.newaxis]
        source, columns = np.nonzero(used & same)
        late = shards[source]
        owners.append(self._tail_owners[late, columns])
        weights.append(self._tail_weights[late, columns])
        every = np.concatenate(owners)
        reached = Reached(
            _slots_of(every),
            np.concatenate(weights).astype(np.float32),
            np.concatenate([np.repeat(np.arange(len(leaves)), ends - begins), source]),
        )
        holes = every == _HOLE
        return reached.only(~holes) if holes.any() else reached

    def primaries(self, leaf: int) -> IntArray:
        """Slots of the images whose primary is in a leaf."""
        shard, place = divmod(leaf, self.range)
        begin = int(self._ends[shard, place - 1]) if place else 0
        tail = slice(0, int(self._tail_sizes[shard]))
        late = self._tail_owners[shard, tail][self._tail_places[shard, tail] == place]
        owners = np.concatenate([self._owners[shard][begin : self._ends[shard, place]], late])
        return owners[owners >= 0].astype(np.int64)

    def every(self) -> tuple[IntArray, IntArray]:
        """Leaf and slot of every posting, (P,) each, in no order."""
        counts = np.diff(self._ends, axis=1, prepend=0).ravel()
        base_leaves = np.repeat(np.arange(len(counts)), counts)
        shards, columns = np.nonzero(np.arange(_TAIL) < self._tail_sizes[:, np.newaxis])
        tail_leaves = shards * self.range + self._tail_places[shards, columns]
        owners = np.concatenate([*self._owners, self._tail_owners[shards, columns]])
        alive = owners != _HOLE
        return np.concatenate([base_leaves, tail_leaves])[alive], _slots_of(owners[alive])

    def _append(
        self,
        shards: IntArray,
        begins: IntArray,
        counts: IntArray,
        chosen: BoolArray,
        arrived: _Arrived,
    ) -> None:
        """Put the chosen of (P,) postings, which the tails of their shards have room for, there."""
        within = np.arange(len(shards)) - np.repeat(begins, counts)
        rows = shards[chosen]
        columns = self._tail_sizes[rows] + within[chosen]
        self._tail_places[rows, columns] = arrived.places[chosen]
        self._tail_owners[rows, columns] = arrived.owners[chosen]
        self._tail_weights[rows, columns] = arrived.weights[chosen]
        # The last of a shard's postings has the highest column.
        self._tail_sizes[rows] = columns + 1

    def _locate(self, slot: int, shard: int) -> _Located:
        """Where a shard has the postings of an image."""
        tail = self._tail_owners[shard, : self._tail_sizes[shard]]
        return _Located(_rows_owned(self._owners[shard], slot), _rows_owned(tail, slot))

    def _add_located(self, found: Found, shard: int, located: _Located) -> None:
        """Add postings to those found."""
        first = shard * self.range
        if len(located.base):
            places = np.searchsorted(self._ends[shard], located.base, side="right")
            found.leaves.extend((places + first).tolist())
            found.primary.extend((self._owners[shard][located.base] >= 0).tolist())
        for column in located.tail.tolist():
            found.leaves.append(int(self._tail_places[shard, column]) + first)
            found.primary.append(bool(self._tail_owners[shard, column] >= 0))

    def _shorten_tail(self, shard: int, columns: IntArray) -> None:
        """Take postings out of a tail; what is behind them moves up."""
        if not len(columns):
            return
        kept = np.delete(np.arange(self._tail_sizes[shard]), columns)
        for tail in (self._tail_places, self._tail_owners, self._tail_weights):
            tail[shard, : len(kept)] = tail[shard, kept]
        self._tail_sizes[shard] = len(kept)

    def _merge(self, shard: int, arrived: _Arrived) -> None:
        """Make a new base of a shard's base, its tail and what arrived, without holes."""
        ends = self._ends[shard]
        base_owners, base_weights = self._without_holes(shard)
        size = int(self._tail_sizes[shard])
        places = np.concatenate([self._tail_places[shard, :size], arrived.places])
        order = np.argsort(places, kind="stable")
        places = places[order]
        # Behind what its leaf has already, and behind those that come with it before it.
        rows = ends[places] + np.arange(len(places))
        is_base = np.ones(len(base_owners) + len(places), np.bool_)
        is_base[rows] = False
        owners = np.empty(len(is_base), np.int32)
        owners[is_base] = base_owners
        owners[rows] = np.concatenate([self._tail_owners[shard, :size], arrived.owners])[order]
        weights = np.empty(len(is_base), np.float16)
        weights[is_base] = base_weights
        weights[rows] = np.concatenate([self._tail_weights[shard, :size], arrived.weights])[order]
        ends += np.cumsum(np.bincount(places, minlength=self.range)).astype(np.int32)
        self._owners[shard] = owners
        self._weights[shard] = weights
        self._tail_sizes[shard] = 0

    def _without_holes(self, shard: int) -> tuple[Int32Array, HalfArray]:
        """Owners and weights of a base; its ends, and the number of holes, are put right."""
        owners = self._owners[shard]
        weights = self._weights[shard]
        if not self._holes[shard]:
            return owners, weights
        kept = owners != _HOLE
        ends = self._ends[shard]
        ends[:] = np.concatenate([[0], np.cumsum(kept)])[ends]
        self._holes[shard] = 0
        return owners[kept], weights[kept]


_NOTHING = _Arrived(np.empty(0, np.uint16), np.empty(0, np.int32), np.empty(0, np.float16))


def runs(values: IntArray) -> tuple[IntArray, IntArray]:
    """Begin and length of each run of equal values among (P,), P > 0."""
    differs = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    begins = differs.nonzero()[0]
    counts = np.empty_like(begins)
    np.subtract(begins[1:], begins[:-1], out=counts[:-1])
    counts[-1] = len(values) - begins[-1]
    return begins, counts


def _rows_owned(owners: Int32Array, slot: int) -> IntArray:
    """Rows of the (P,) owners that are an image's."""
    return ((owners == slot) | (owners == ~slot)).nonzero()[0]


def _slots_of(owners: Int32Array) -> IntArray:
    """The (P,) slots of owners: those of alternates are complements, which a sign tells."""
    return (owners ^ (owners >> 31)).astype(np.int64)
