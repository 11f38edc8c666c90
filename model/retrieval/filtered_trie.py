"""Filtered tries: what a filter leaves of a trie, to be searched like the trie itself.

A search asks a trie which children a prefix has and which images a leaf has. A filtered trie gives
the same answers of the allowed images alone, so that beams lead to those and to nothing else.
"""

from functools import cached_property

import numpy as np
import torch

from model.retrieval.branches import Branches
from model.retrieval.shards import Reached
from model.retrieval.trie import Trie
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, IntArray


class FilterTables:
    """Tables of branches that all filtered tries of one trie share: they show one at a time.

    A table for each filter would take megabytes, and a GPU's captured search reads the tables where
    they are. For one thread.
    """

    def __init__(self, shape: IdentifierShape, device: torch.device | None = None) -> None:
        place = device or torch.device("cpu")
        self.branches = _ShownBranches(shape, place)
        self.primaries = _ShownBranches(shape, place)


class _ShownBranches:
    """Branches that hold the leaves of whoever showed some last."""

    def __init__(self, shape: IdentifierShape, device: torch.device) -> None:
        self._shape = shape
        self._device = device
        self._branches: Branches | None = None
        """Made for the first filter."""
        self._shown: IntArray = np.empty(0, np.int64)

    def show(self, leaves: IntArray) -> Branches:
        """The branches of (P,) postings' leaves; an array that is shown already costs nothing."""
        if self._branches is None:
            self._branches = Branches(self._shape, self._device)
        if leaves is not self._shown:
            self._branches.add(self._shown, -1)
            self._branches.add(leaves, 1)
            self._shown = leaves
        return self._branches


class FilteredTrie:
    """The allowed images of a trie, which must not change while this is used."""

    def __init__(self, trie: Trie, slots: IntArray, tables: FilterTables) -> None:
        """`slots` (n,) of the allowed images, ascending; all of them are searchable."""
        self.shape = trie.shape
        self._trie = trie
        self._tables = tables
        self._slots = slots
        size = int(slots[-1]) + 1 if len(slots) else 0
        self._allowed = np.zeros(size + 1, np.bool_)
        """(N + 1,) by slot; the last one is for all slots from N on"""
        self._allowed[slots] = True

    @property
    def images(self) -> int:
        """Allowed images."""
        return len(self._slots)

    @property
    def branches(self) -> Branches:
        """Of all postings of allowed images. Valid until another filter's are asked for."""
        return self._tables.branches.show(self._leaves)

    @property
    def primaries(self) -> Branches:
        """Of the primary ones that can be decoded. Valid until another filter's are asked for."""
        return self._tables.primaries.show(self._primary_leaves)

    @property
    def decodable(self) -> int:
        """Allowed images that the paper's mode can reach."""
        return len(self._primary_leaves)

    def searchable_slots(self) -> IntArray:
        """Slots of the allowed images, (n,) int64 ascending."""
        return self._slots

    def reached(self, leaves: IntArray) -> Reached:
        """Every posting of allowed images under the (L,) leaves."""
        found = self._trie.reached(leaves)
        return found.only(self._is_allowed(found.slots))

    def suffixes(self, leaf: int) -> dict[int, int]:
        """Suffix → slot of the allowed images whose primary is in the leaf."""
        found = self._trie.suffixes(leaf)
        slots = np.fromiter(found.values(), np.int64, len(found))
        allowed = self._is_allowed(slots).tolist()
        pairs = zip(found.items(), allowed, strict=True)
        return {suffix: slot for (suffix, slot), is_allowed in pairs if is_allowed}

    @cached_property
    def _leaves(self) -> IntArray:
        """The (P,) leaves of all their postings."""
        leaves, slots = self._trie.every()
        return leaves[self._is_allowed(slots)]

    @cached_property
    def _primary_leaves(self) -> IntArray:
        """The (P,) leaves of the primary postings that can be decoded."""
        leaves: list[int] = []
        for leaf in np.unique(self._leaves).tolist():
            leaves += [leaf] * len(self.suffixes(leaf))
        return np.array(leaves, np.int64)

    def _is_allowed(self, slots: IntArray) -> BoolArray:
        return self._allowed[np.minimum(slots, len(self._allowed) - 1)]


# What a search reads of a trie.
SearchableTrie = Trie | FilteredTrie
