"""Prefix means: the mean vector of the images below each prefix of identifiers; they guide beams.

A decoder that has learnt from a few thousand pictures knows coarse codes well and fine ones badly.
What lies below a prefix is known exactly, of images that came after the training too: beams are
kept below which the best image is expected to be like the query. The idea of looking ahead by a
cheap score of what is below a node is that of PAG (Zeng et al. 2024, "Planning ahead in generative
retrieval").

Letters in shapes: B queries, W beams, D width of the encoder, P postings.
"""

import torch
from torch import Tensor

from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import FloatArray, IntArray, NamedArrays

# Numbers of a level, 256 MiB: deeper levels than that are not guided.
_MOST_NUMBERS = 1 << 26

# Standard deviation of the cosines of a query with images, as a share of their spread: how many
# directions vectors of an encoder take. Flat between 0.05 and 0.1 (docs/experiments/small.md).
_DEVIATION = 0.07


class PrefixMeans:
    """Sums of unit vectors below each prefix; they follow images as they are posted and deleted."""

    def __init__(
        self, shape: IdentifierShape, width: int, device: torch.device | None = None
    ) -> None:
        """`device` is where they are asked for; None is the CPU."""
        self.shape = shape
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []
        for level in range(LEVELS):
            prefixes = shape.prefixes(level + 1)
            if prefixes * width > _MOST_NUMBERS:
                break
            self._sums.append(torch.zeros((prefixes, width), device=device))
            self._counts.append(torch.zeros(prefixes, device=device))

    def add(self, leaves: IntArray, vectors: FloatArray, sign: int = 1) -> None:
        """Post (P, D) vectors under (P,) leaves; `sign` -1 takes postings back."""
        for level, (sums, counts) in enumerate(zip(self._sums, self._counts, strict=True)):
            below = self.shape.leaves // self.shape.prefixes(level + 1)
            rows = torch.from_numpy(leaves // below).to(sums.device)
            # In place: a captured search reads the tables where they are.
            sums.index_add_(0, rows, torch.from_numpy(vectors).to(sums.device), alpha=sign)
            counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float32), alpha=sign)

    def to_arrays(self) -> NamedArrays:
        """All that it holds, for `restore`."""
        arrays: NamedArrays = {}
        for level, (sums, counts) in enumerate(zip(self._sums, self._counts, strict=True)):
            arrays[f"sums_{level}"] = sums.cpu().numpy()
            arrays[f"counts_{level}"] = counts.cpu().numpy()
        return arrays

    def restore(self, arrays: NamedArrays) -> None:
        """Take over what other means of this shape and width held."""
        for level, (sums, counts) in enumerate(zip(self._sums, self._counts, strict=True)):
            sums.copy_(torch.tensor(arrays[f"sums_{level}"]))
            counts.copy_(torch.tensor(arrays[f"counts_{level}"]))

    def promise(self, level: int, prefixes: Tensor, queries: Tensor) -> Tensor | None:
        """Cosine (B, W) that the best image below each of (B, W) prefixes is expected to have.

        Of (B, D) queries and prefixes of level + 1 codes. It is the mean cosine, and the more above
        it the more images there are and the less alike they are: n draws of a normal variable have
        a maximum near √(2 ln n) deviations above their mean. None for a level without means.
        """
        if level >= len(self._sums):
            return None
        counts = self._counts[level][prefixes].clamp(min=1)
        # Divided by the counts at the end: the sums are most of what is read here.
        sums = self._sums[level][prefixes]
        # Unit vectors lie at √(1 - |mean|²) from their mean, on average of the squares.
        spread = (1 - sums.square().sum(-1) / counts.square()).clamp(min=0).sqrt()
        above = _DEVIATION * spread * (2 * counts.log()).sqrt()
        return torch.einsum("bwd,bd->bw", sums, queries) / counts + above
