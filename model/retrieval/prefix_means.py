"""Prefix means: the mean vector of the images below each prefix of identifiers; they guide beams.

A decoder that has learnt from a few thousand pictures knows coarse codes well and fine ones badly.
What lies below a prefix is known exactly, of images that came after the training too: beams whose
images are like the query on average are kept. The idea of looking ahead by a cheap score of what is
below a node is that of PAG (Zeng et al. 2024, "Planning ahead in generative retrieval").

Letters in shapes: B queries, W beams, D width of the encoder, P postings.
"""

import numpy as np
import torch
from torch import Tensor

from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import FloatArray, IntArray

# Numbers of a level, 256 MiB: deeper levels than that are not guided.
_MOST_NUMBERS = 1 << 26


class PrefixMeans:
    """Sums of unit vectors below each prefix; they grow as images are posted.

    Deleted images stay in the sums until an index is loaded anew: they bend a mean a little, and
    the trie alone decides what can be reached.
    """

    def __init__(self, shape: IdentifierShape, width: int) -> None:
        self.shape = shape
        self._sums: list[FloatArray] = []
        self._counts: list[FloatArray] = []
        for level in range(LEVELS):
            prefixes = shape.prefixes(level + 1)
            if prefixes * width > _MOST_NUMBERS:
                break
            self._sums.append(np.zeros((prefixes, width), np.float32))
            self._counts.append(np.zeros(prefixes, np.float32))

    def add(self, leaves: IntArray, vectors: FloatArray) -> None:
        """Post (P, D) vectors under (P,) leaves."""
        for level, (sums, counts) in enumerate(zip(self._sums, self._counts, strict=True)):
            below = self.shape.leaves // self.shape.prefixes(level + 1)
            np.add.at(sums, leaves // below, vectors)
            np.add.at(counts, leaves // below, 1)

    def similarities(self, level: int, prefixes: Tensor, queries: Tensor) -> Tensor | None:
        """Mean cosine (B, W) of (B, D) queries and images below (B, W) prefixes of level + 1 codes.

        None for a level without means.
        """
        if level >= len(self._sums):
            return None
        rows = prefixes.cpu().numpy()
        counts = np.maximum(self._counts[level][rows], 1)
        means = torch.from_numpy(self._sums[level][rows]).to(queries)
        cosines = torch.einsum("bwd,bd->bw", means, queries)
        return cosines / torch.from_numpy(counts).to(queries)
