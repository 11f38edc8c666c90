"""The trie in memory: which leaves exist, and which images are posted under them.

It follows inserts and deletes without a rebuild, at a cost that does not depend on its size. Two
halves. *Structure* (`model.retrieval.branches`): which prefixes have leaves below them. *Content*
(`model.retrieval.shards`): postings by ranges of leaves. Beside them, by *slot*, an image's row in
the ranking embeddings: which shards it is in, for deletes, and its suffix.

One thread owns a trie; it applies changes between batches of queries. It does so in slices: what
one call costs grows with the postings that it is given.
"""

from collections.abc import Iterable

import numpy as np
import torch

from model.retrieval.branches import Branches
from model.retrieval.shards import SLOT_LIMIT, Found, Reached, Shards
from model.retrieval.slot_table import SlotTable
from schemas.errors import RefuseToStartError
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, FloatArray, IntArray, NamedArrays

# In place of a suffix: the posting is an alternate.
ALTERNATE = -1

# Suffixes that a shape may have: each takes a token of the model.
SUFFIX_LIMIT = np.iinfo(np.int16).max


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
        self._shards = Shards(shape.leaves)
        self._slots = SlotTable(shape.suffixes)

    @property
    def rows(self) -> int:
        """Postings in memory, and those that were deleted since their shard was last merged."""
        return self._shards.rows

    @property
    def nbytes(self) -> int:
        """Bytes of postings and slots; branches, which do not grow with images, are not counted."""
        return self._shards.nbytes + self._slots.nbytes

    @property
    def postings(self) -> int:
        """Postings of all images."""
        return int(self.branches.load.sum())

    def to_arrays(self) -> NamedArrays:
        """All that it holds, for `restore`."""
        return {
            "load": self.branches.load,
            "primary_load": self.primaries.load,
            **self._slots.to_arrays(),
            **self._shards.to_arrays(),
        }

    def restore(self, arrays: NamedArrays, images: int) -> None:
        """Take over what another trie of this shape held, which had so many images."""
        self._shards.restore(arrays)
        self.branches.restore(arrays["load"])
        self.primaries.restore(arrays["primary_load"])
        self._slots.restore(arrays)
        self.images = images

    def insert(
        self,
        leaves: IntArray,
        slots: IntArray,
        weights: FloatArray,
        suffixes: IntArray,
    ) -> None:
        """Add P postings; suffix `ALTERNATE` marks an alternate.

        The slot of a deleted image may be used again. Weights come back in half precision.
        """
        if not len(leaves):
            return
        self._grow(int(slots.max()) + 1)
        # All suffixes beyond the shape are alike here: no mode decodes them, and they have no end.
        suffixes = np.minimum(suffixes, self.shape.suffixes)
        primary = suffixes != ALTERNATE
        self._slots.set_suffixes(slots[primary], suffixes[primary])
        self._slots.add_shards(slots, self._shards.shard_of(leaves))
        self._shards.insert(leaves, slots, weights, primary)
        self.branches.add(leaves, 1)
        self.primaries.add(leaves[primary & (suffixes < self.shape.suffixes)], 1)
        self.images += int(primary.sum())

    def delete(self, slots: Iterable[int]) -> None:
        """Remove images with all their postings; unknown and removed slots are ignored."""
        leaves: list[int] = []
        decodable: list[int] = []
        gone = self._posted_among(slots)
        suffixes = self._slots.suffixes(np.array(gone, np.int64)).tolist()
        for slot, suffix in zip(gone, suffixes, strict=True):
            found = self._shards.delete(slot, self._slots.shards(slot))
            self._slots.forget(slot)
            leaves += found.leaves
            own = _primary_leaves(found)
            self.images -= len(own)
            if suffix < self.shape.suffixes:
                decodable += own
        self.branches.add(np.array(leaves, np.int64), -1)
        self.primaries.add(np.array(decodable, np.int64), -1)

    def has(self, slots: IntArray) -> BoolArray:
        """Which of (N,) slots have a posting."""
        return self._slots.posted(slots)

    def posted(self, slots: Iterable[int]) -> tuple[IntArray, IntArray]:
        """Leaf and slot (P,) of each posting of some images; deleted ones have none."""
        leaves: list[int] = []
        owners: list[int] = []
        for slot in self._posted_among(slots):
            found = self._shards.find(slot, self._slots.shards(slot))
            leaves += found.leaves
            owners += [slot] * len(found.leaves)
        return np.array(leaves, np.int64), np.array(owners, np.int64)

    def reached(self, leaves: IntArray) -> Reached:
        """Every posting under the (L,) leaves."""
        return self._shards.reached(leaves)

    def every(self) -> tuple[IntArray, IntArray]:
        """Leaf and slot of every posting, (P,) each, in no order."""
        return self._shards.every()

    def searchable_slots(self) -> IntArray:
        """Slots of all images that have a posting, (N,) int64 ascending."""
        return self._slots.every_posted()

    def suffixes(self, leaf: int) -> dict[int, int]:
        """Suffix → slot of the images whose primary is in the leaf, less those beyond the shape."""
        slots = self._shards.primaries(leaf)
        slot_of = dict(zip(self._slots.suffixes(slots).tolist(), slots.tolist(), strict=True))
        slot_of.pop(self.shape.suffixes, None)
        return slot_of

    def _posted_among(self, slots: Iterable[int]) -> list[int]:
        """Those of the slots that have a posting, each once."""
        each = np.array(list(dict.fromkeys(slots)), np.int64)
        return each[self.has(each)].tolist() if len(each) else []

    def _grow(self, size: int) -> None:
        """Make room for slots below `size`."""
        if size > SLOT_LIMIT:
            raise RefuseToStartError(
                f"the number of images must be at most {SLOT_LIMIT:,}, got {size:,}; spread them"
                " over several indexes"
            )
        self._slots.grow(size)


def _primary_leaves(found: Found) -> list[int]:
    pairs = zip(found.leaves, found.primary, strict=True)
    return [leaf for leaf, primary in pairs if primary]
