"""Residual quantisation, as IRGen and TIGeR identify images.

Letters in shapes: N images, D embedding width, L levels, K codes of a level, M identifiers.
"""

from dataclasses import dataclass

import numpy as np

from model.identifiers.codebook import nearest
from model.identifiers.kmeans import kmeans_centres
from model.identifiers.rivals.scheme import (
    FittedScheme,
    Identifier,
    SchemeImages,
    as_symbols,
    single,
)
from schemas.records import FloatArray, IntArray

# 65,536 identifiers in 64 tokens; the papers have 256 codes a level for many more images.
LEVELS = 4
CODES = 16

_STARTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class ResidualQuantiser:
    """Each level quantises what the levels before it leave over."""

    centres: FloatArray
    """(L, K, D)"""

    def encode(self, vectors: FloatArray) -> IntArray:
        """(N, L) codes of (N, D) vectors, the nearest centre of each level."""
        return self.encode_several(vectors, 1)[:, 0]

    def encode_several(self, vectors: FloatArray, count: int) -> IntArray:
        """(N, M, L) the `count` codes that a beam search finds nearest, best first."""
        return np.stack([self._beam(vector, count) for vector in vectors])

    def _beam(self, vector: FloatArray, count: int) -> IntArray:
        rests = vector[np.newaxis]  # (m, D)
        codes = np.zeros((1, 0), np.int64)
        for centres in self.centres:
            left = rests[:, np.newaxis] - centres[np.newaxis]  # (m, K, D)
            errors = (left**2).sum(-1).reshape(-1)
            best = np.argsort(errors, kind="stable")[:count]
            parents, chosen = best // len(centres), best % len(centres)
            codes = np.column_stack([codes[parents], chosen])
            rests = left[parents, chosen]
        return codes


def fit_residual(vectors: FloatArray, levels: int, codes: int, seed: int) -> ResidualQuantiser:
    """Fit level by level with k-means on (N, D) vectors."""
    rest = vectors
    centres: list[FloatArray] = []
    for level in range(levels):
        count = min(codes, len(np.unique(np.round(rest, 6), axis=0)))
        fitted = kmeans_centres(rest, count, starts=_STARTS, seed=seed + level)
        own = fitted.astype(np.float32)
        centres.append(own)
        rest = rest - own[nearest(rest, own)]
    # A level with fewer distinct rests repeats its last centre, which is never nearest first.
    padded = [np.pad(own, ((0, codes - len(own)), (0, 0)), mode="edge") for own in centres]
    return ResidualQuantiser(np.stack(padded))


@dataclass(frozen=True, slots=True)
class Residual:
    """Codes of four levels. Images with the same codes share an identifier, oldest first."""

    name: str = "residual quantisation (IRGen, TIGeR)"
    source: str = "Zhang et al. 2024; Qu et al. 2024"
    deviation: str = (
        "k-means on the encoder's vectors, without IRGen's supervised tokenizer and TIGeR's reverse"
        " re-ranking"
    )
    later: str = "the codes of the picture's vector"
    writes: bool = False
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Fit the quantiser on the images' vectors."""
        quantiser = fit_residual(images.vectors, LEVELS, CODES, seed)
        counts = [CODES] * LEVELS
        own = as_symbols(quantiser.encode(images.vectors), counts)

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            return [[each] for each in as_symbols(quantiser.encode(later.vectors), counts)]

        return FittedScheme(LEVELS * CODES, single(own, images), assign)
