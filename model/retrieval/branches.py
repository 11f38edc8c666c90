"""Branches: which prefixes have occupied leaves below them, the structure half of the trie.

For each prefix the number of occupied leaves below it, in dense int32 tables on the decoder's
device, so the allowed children of all beams are one gather, and an insert or delete is an
`index_add`.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import IntArray

# Leaves a dense table may have: 1 GiB of int32. The paper's profile has 2**20.
DENSE_LIMIT = 1 << 28


class Branches:
    """Occupied leaves below each prefix, on a device: what constrained decoding asks for."""

    def __init__(self, shape: IdentifierShape, device: torch.device) -> None:
        if shape.leaves > DENSE_LIMIT:
            raise RefuseToStartError(
                f"the number of leaves must be at most {DENSE_LIMIT:,}, got {shape.leaves:,}: the"
                " trie keeps a dense table of them; lower a level's count"
            )
        self.shape = shape
        self.load = np.zeros(shape.leaves, dtype=np.int32)
        """(leaves,) postings of each leaf, on the host."""
        self.leaves = 0
        """Number of occupied leaves."""
        self._below: list[Tensor] = []
        for level in range(LEVELS + 1):
            size = shape.prefixes(level)
            self._below.append(torch.zeros(size, dtype=torch.int32, device=device))

    def add(self, leaves: IntArray, sign: int) -> None:
        """Count postings in (+1) or out (-1); `leaves` (P,) may repeat."""
        touched, amount = np.unique(leaves, return_counts=True)
        was_occupied = self.load[touched] > 0
        self.load[touched] += sign * amount.astype(np.int32)
        is_occupied = self.load[touched] > 0
        # Only a leaf that was empty, or has become empty, changes the counts above it.
        changed = touched[was_occupied != is_occupied]
        if not len(changed):
            return
        self.leaves += sign * len(changed)
        # In place: a captured search reads the tables where they are.
        for level, table in enumerate(self._below):
            leaves_per_prefix = self.shape.leaves // self.shape.prefixes(level)
            prefixes = torch.from_numpy(changed // leaves_per_prefix).to(table.device)
            change = torch.full_like(prefixes, sign, dtype=torch.int32)
            table.index_add_(0, prefixes, change)

    def restore(self, load: npt.NDArray[np.int32]) -> None:
        """Take over the (leaves,) postings of each leaf that other branches had in `load`."""
        self.load[:] = load
        occupied = load > 0
        self.leaves = int(occupied.sum())
        for level, table in enumerate(self._below):
            below = occupied.reshape(self.shape.prefixes(level), -1).sum(axis=1, dtype=np.int32)
            table.copy_(torch.from_numpy(below))

    def children(self, level: int, prefixes: Tensor) -> Tensor:
        """Occupied leaves below each child of prefixes of length `level`.

        (…,) int64 → (…, K) int32, 0 where a child has none.
        """
        return self._below[level + 1].view(-1, self.shape.codes[level])[prefixes]

    def below(self, level: int, prefixes: Tensor) -> Tensor:
        """Occupied leaves below each prefix of length `level`, (…,) int64 → (…,) int32."""
        return self._below[level][prefixes]
