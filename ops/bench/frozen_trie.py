"""A frozen trie, the peer of the live one: dense tables above, CSR below, nothing ever changes.

Built after the description of STATIC (arXiv 2602.22647): the top two levels are one dense table of
what exists, each level below it has the children of its nodes in one array, in the order of the
nodes, with offsets; reading a node's children gathers as many as the level's widest node has. An
insert or a delete is a new trie.
"""

import numpy as np
import torch
from torch import Tensor

from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import IntArray

# Levels of the dense table.
_DENSE = 2


class FrozenTrie:
    """The leaves that exist, and the slots posted under each."""

    def __init__(self, shape: IdentifierShape, leaves: IntArray, slots: IntArray) -> None:
        """Build it from (P,) postings."""
        self._shape = shape
        order = np.argsort(leaves, kind="stable")
        self._slots = slots[order].astype(np.int32)
        occupied, begins = np.unique(leaves[order], return_index=True)
        self._slot_offsets = np.append(begins, len(leaves))
        nodes = np.unique(occupied // (shape.leaves // shape.prefixes(_DENSE)))
        # The row of each node, -1 where there is none.
        self._dense = torch.full((shape.prefixes(_DENSE),), -1)
        self._dense[torch.from_numpy(nodes)] = torch.arange(len(nodes))
        self._offsets: list[Tensor] = []
        self._codes: list[Tensor] = []
        self._widest: list[int] = []
        for level in range(_DENSE, LEVELS):
            below = np.unique(occupied // (shape.leaves // shape.prefixes(level + 1)))
            parents, codes = np.divmod(below, shape.codes[level])
            offsets = np.searchsorted(parents, np.append(nodes, shape.leaves))
            self._offsets.append(torch.from_numpy(offsets))
            # Padded, so that the widest gather behind the last node stays inside.
            padded = np.append(codes, np.zeros(shape.codes[level], np.int64))
            self._codes.append(torch.from_numpy(padded.astype(np.int32)))
            self._widest.append(int(np.diff(offsets).max()))
            nodes = below

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        tensors = [self._dense, *self._offsets, *self._codes]
        content = self._slots.nbytes + self._slot_offsets.nbytes
        return content + sum(tensor.nbytes for tensor in tensors)

    def rows(self, prefixes: Tensor) -> Tensor:
        """The rows of (B,) prefixes of two codes, which exist."""
        return self._dense[prefixes]

    def children(self, level: int, rows: Tensor) -> Tensor:
        """Which codes may follow (B,) nodes of `level` codes, two or more: (B, K) bool."""
        index = level - _DENSE
        begins = self._offsets[index][rows]
        ends = self._offsets[index][rows + 1]
        places = begins[:, None] + torch.arange(self._widest[index])
        codes = self._codes[index][places].long()
        allowed = torch.zeros(len(rows), self._shape.codes[level] + 1, dtype=torch.bool)
        # What lies behind a node's children is written to a column that is cut off.
        allowed.scatter_(1, torch.where(places < ends[:, None], codes, self._shape.codes[level]), 1)
        return allowed[:, :-1]
