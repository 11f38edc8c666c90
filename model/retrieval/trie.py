"""The trie in memory: which leaves exist, who is posted under them. Follows inserts and deletes without a rebuild.

Two halves. *Structure* (`Branches`): for each prefix the number of occupied leaves below it, dense int32 tables on the
decoder's device, so that the allowed children of all beams are one gather and an insert or delete is an `index_add`.
*Content*: postings by leaf, an immutable base in CSR form plus a small delta that is merged when it has grown. An image is
an int32 *slot*, its row in the ranking embeddings: a posting costs 14 bytes.

One thread owns a trie; it applies changes between batches of queries.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import BoolArray, FloatArray, IntArray

DENSE_LIMIT = 1 << 28
"""Leaves a dense table may have: 1 GiB of int32. The paper's profile has 2**20."""

ALTERNATE = -1
"""In place of a suffix: the posting is an alternate."""


class Branches:
    """Occupied leaves below each prefix, on a device; supports the questions that constrained decoding asks."""

    def __init__(self, shape: IdentifierShape, device: torch.device) -> None:
        if shape.leaves > DENSE_LIMIT:
            raise RefuseToStartError(
                f"{shape.leaves:,} leaves exceed {DENSE_LIMIT:,}, which the trie holds densely; lower a level's count"
            )
        self.shape = shape
        self.load = np.zeros(shape.leaves, dtype=np.int32)
        """Postings of each leaf, on the host."""
        self._below = [
            torch.zeros(shape.prefixes(level), dtype=torch.int32, device=device)
            for level in range(LEVELS + 1)
        ]

    @property
    def leaves(self) -> int:
        """Occupied leaves."""
        return int(self._below[0])

    def add(self, leaves: IntArray, sign: int) -> None:
        """Count postings in (+1) or out (-1); `leaves` (P,) may repeat."""
        touched, amount = np.unique(leaves, return_counts=True)
        before = self.load[touched] > 0
        self.load[touched] += sign * amount.astype(np.int32)
        changed = touched[before != (self.load[touched] > 0)]
        if not len(changed):
            return
        for level, table in enumerate(self._below):
            prefixes = torch.from_numpy(
                changed // (self.shape.leaves // self.shape.prefixes(level))
            ).to(table.device)
            table.index_add_(0, prefixes, torch.full_like(prefixes, sign, dtype=torch.int32))

    def children(self, level: int, prefixes: Tensor) -> Tensor:
        """Occupied leaves below each child: (…,) int64 prefixes of length `level` → (…, K) int32, 0 where there is none."""
        return self._below[level + 1].view(-1, self.shape.codes[level])[prefixes]

    def below(self, level: int, prefixes: Tensor) -> Tensor:
        """Occupied leaves below each prefix of length `level`, (…,) int32."""
        return self._below[level][prefixes]


@dataclass(frozen=True, slots=True)
class _Base:
    """Postings sorted by leaf: rows `offsets[leaf]:offsets[leaf+1]`. `by_slot` lists the rows sorted by slot."""

    offsets: IntArray
    slots: "np.typing.NDArray[np.int32]"
    weights: FloatArray
    suffixes: "np.typing.NDArray[np.int16]"
    by_slot: "np.typing.NDArray[np.int32]"


@dataclass(frozen=True, slots=True)
class Reached:
    """Members of some leaves, P postings: `slots` (P,) int64, `weights` (P,) float32, `source` (P,) row of the leaf asked."""

    slots: IntArray
    weights: FloatArray
    source: IntArray


class Trie:
    """All postings of one generation. `branches` has every posting, `primaries` the primary ones only (the paper's trie)."""

    def __init__(self, shape: IdentifierShape, device: torch.device | None = None) -> None:
        self.shape = shape
        place = device or torch.device("cpu")
        self.branches = Branches(shape, place)
        self.primaries = Branches(shape, place)
        self.images = 0
        self._base = _sorted(
            shape,
            np.empty(0, np.int64),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
            np.empty(0, np.int16),
        )
        self._delta: dict[int, list[tuple[int, float, int]]] = {}
        self._delta_of: dict[int, list[int]] = {}
        self._delta_size = 0
        self._dead: BoolArray = np.zeros(0, dtype=np.bool_)

    def insert(
        self, leaves: IntArray, slots: IntArray, weights: FloatArray, suffixes: IntArray
    ) -> None:
        """Add P postings; suffix `ALTERNATE` marks an alternate. A slot is used for one image only, ever."""
        if not len(leaves):
            return
        self._grow(int(slots.max()) + 1)
        primary = suffixes != ALTERNATE
        self.branches.add(leaves, 1)
        self.primaries.add(leaves[primary], 1)
        self.images += int(primary.sum())
        if len(leaves) > 4096:
            self._merge(leaves, slots, weights, suffixes)
            return
        for leaf, slot, weight, suffix in zip(
            leaves.tolist(), slots.tolist(), weights.tolist(), suffixes.tolist(), strict=True
        ):
            self._delta.setdefault(leaf, []).append((slot, weight, suffix))
            self._delta_of.setdefault(slot, []).append(leaf)
        self._delta_size += len(leaves)
        if self._delta_size > max(4096, len(self._base.slots) // 8):
            nothing = np.empty(0, np.int64)
            self._merge(nothing, nothing, np.empty(0, np.float32), nothing)

    def delete(self, slots: Iterable[int]) -> None:
        """Remove images with all their postings; unknown and removed slots are ignored."""
        doomed = np.array(
            [
                slot
                for slot in dict.fromkeys(slots)
                if slot < len(self._dead) and not self._dead[slot]
            ],
            dtype=np.int64,
        )
        if not len(doomed):
            return
        base = self._base
        begin, end = (
            np.searchsorted(base.slots, doomed, side=side, sorter=base.by_slot)
            for side in ("left", "right")
        )
        rows = base.by_slot[_ranges(begin, end - begin)]
        leaves = (np.searchsorted(base.offsets, rows, side="right") - 1).astype(np.int64)
        primary = base.suffixes[rows] != ALTERNATE
        fresh = [
            (leaf, suffix)
            for slot in doomed.tolist()
            for leaf in self._delta_of.pop(slot, ())
            for suffix in self._drop(leaf, slot)
        ]
        late = np.array([leaf for leaf, _ in fresh], dtype=np.int64)
        late_primary = np.array([suffix != ALTERNATE for _, suffix in fresh], dtype=np.bool_)
        self._dead[doomed] = True
        self.branches.add(np.concatenate([leaves, late]), -1)
        gone = np.concatenate([leaves[primary], late[late_primary]])
        self.primaries.add(gone, -1)
        self.images -= len(gone)

    def reached(self, leaves: IntArray) -> Reached:
        """Every posting under the (L,) leaves."""
        base = self._base
        begin = base.offsets[leaves]
        count = base.offsets[leaves + 1] - begin
        rows = _ranges(begin, count)
        slots, weights, source = (
            base.slots[rows].astype(np.int64),
            base.weights[rows],
            np.repeat(np.arange(len(leaves)), count),
        )
        alive = ~self._dead[slots]
        found = Reached(slots[alive], weights[alive], source[alive])
        late = [
            (slot, weight, at)
            for at, leaf in enumerate(leaves.tolist())
            for slot, weight, _ in self._delta.get(leaf, ())
        ]
        if not late:
            return found
        return Reached(
            slots=np.concatenate([found.slots, np.array([slot for slot, _, _ in late], np.int64)]),
            weights=np.concatenate(
                [found.weights, np.array([weight for _, weight, _ in late], np.float32)]
            ),
            source=np.concatenate([found.source, np.array([at for _, _, at in late], np.int64)]),
        )

    def searchable_slots(self) -> IntArray:
        """Slots of all images that have a posting, (N,) int64 ascending."""
        return np.unique(self.reached(np.flatnonzero(self.branches.load)).slots)

    def suffixes(self, leaf: int) -> dict[int, int]:
        """Suffix → slot of the images whose primary is in the leaf."""
        base = self._base
        rows = range(int(base.offsets[leaf]), int(base.offsets[leaf + 1]))
        found = {
            int(base.suffixes[row]): int(base.slots[row])
            for row in rows
            if not self._dead[base.slots[row]]
        }
        found |= {suffix: slot for slot, _, suffix in self._delta.get(leaf, ())}
        found.pop(ALTERNATE, None)
        return found

    def _drop(self, leaf: int, slot: int) -> list[int]:
        kept = [entry for entry in self._delta[leaf] if entry[0] != slot]
        gone = [suffix for other, _, suffix in self._delta[leaf] if other == slot]
        self._delta_size -= len(gone)
        if kept:
            self._delta[leaf] = kept
        else:
            del self._delta[leaf]
        return gone

    def _merge(
        self, leaves: IntArray, slots: IntArray, weights: FloatArray, suffixes: IntArray
    ) -> None:
        """A new base of the old one, the delta and further postings, without the dead."""
        base = self._base
        alive = ~self._dead[base.slots]
        old = np.repeat(np.arange(self.shape.leaves), np.diff(base.offsets))[alive]
        late = [(leaf, *entry) for leaf, entries in self._delta.items() for entry in entries]
        columns = list(zip(*late, strict=True)) if late else [(), (), (), ()]
        self._base = _sorted(
            self.shape,
            np.concatenate([old, np.array(columns[0], np.int64), leaves]),
            np.concatenate(
                [base.slots[alive], np.array(columns[1], np.int32), slots.astype(np.int32)]
            ),
            np.concatenate(
                [base.weights[alive], np.array(columns[2], np.float32), weights.astype(np.float32)]
            ),
            np.concatenate(
                [base.suffixes[alive], np.array(columns[3], np.int16), suffixes.astype(np.int16)]
            ),
        )
        self._delta, self._delta_of, self._delta_size = {}, {}, 0

    def _grow(self, size: int) -> None:
        if size > len(self._dead):
            self._dead = np.concatenate(
                [
                    self._dead,
                    np.zeros(max(size, 2 * len(self._dead)) - len(self._dead), dtype=np.bool_),
                ]
            )


def _ranges(begin: IntArray, count: IntArray) -> IntArray:
    """begin[0], begin[0]+1, … for each range, joined."""
    total = int(count.sum())
    before = np.cumsum(count) - count
    return np.arange(total, dtype=np.int64) - np.repeat(before - begin, count)


def _sorted(
    shape: IdentifierShape,
    leaves: IntArray,
    slots: "np.typing.NDArray[np.int32]",
    weights: FloatArray,
    suffixes: "np.typing.NDArray[np.int16]",
) -> _Base:
    order = np.argsort(leaves, kind="stable")
    offsets = np.zeros(shape.leaves + 1, dtype=np.int64)
    np.cumsum(np.bincount(leaves, minlength=shape.leaves), out=offsets[1:])
    kept = slots[order]
    return _Base(
        offsets,
        kept,
        weights[order],
        suffixes[order],
        np.argsort(kept, kind="stable").astype(np.int32),
    )
