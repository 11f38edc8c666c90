"""Token-to-token identifiers, as in AVG: what a picture shows, token by token."""

from dataclasses import dataclass

import numpy as np

from model.identifiers.codebook import nearest
from model.identifiers.kmeans import kmeans_centres
from model.identifiers.rivals.scheme import FittedScheme, Identifier, SchemeImages, single
from schemas.records import FloatArray

# Codes of a region, the same in all regions.
_CODES = 64

_STARTS = 2


@dataclass(frozen=True, slots=True)
class TokenToToken:
    """The quarters of a picture in reading order, each by its nearest code."""

    name: str = "token-to-token (AVG)"
    source: str = "Li et al. 2025b"
    deviation: str = (
        "codes of the frozen vision tower's states by k-means, not a tokenizer that was aligned"
        " with text"
    )
    later: str = "the codes of the picture's quarters"
    writes: bool = False
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Fit the codes on all regions of the images."""
        width = images.regions.shape[-1]
        count = min(_CODES, len(images))
        flat = images.regions.reshape(-1, width)
        centres = kmeans_centres(flat, count, starts=_STARTS, seed=seed).astype(np.float32)

        def symbols(regions: FloatArray) -> list[tuple[int, ...]]:
            codes = nearest(regions.reshape(-1, width), centres)
            return [tuple(row) for row in codes.reshape(len(regions), -1).tolist()]

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            return [[each] for each in symbols(later.regions)]

        return FittedScheme(_CODES, single(symbols(images.regions), images), assign)
