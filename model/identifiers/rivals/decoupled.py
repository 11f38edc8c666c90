"""Modality-decoupled residual quantisation with embedding re-ranking, as in GENIUS."""

from dataclasses import dataclass

import numpy as np

from model.identifiers.rivals.residual import CODES, LEVELS, fit_residual
from model.identifiers.rivals.scheme import (
    FittedScheme,
    Identifier,
    SchemeImages,
    as_symbols,
    single,
)
from schemas.records import FloatArray

# The first code says what is to be found: images here, texts in other tasks of the paper.
_MODALITIES = 2
_IMAGE = 0


@dataclass(frozen=True, slots=True)
class Decoupled:
    """The modality, then codes of what pictures and captions have in common."""

    name: str = "decoupled quantisation, re-ranked (GENIUS)"
    source: str = "Kim et al. 2025"
    deviation: str = (
        "the quantiser is fitted by k-means on pictures and captions, not by contrast; no query"
        " augmentation"
    )
    later: str = "the codes of the picture's vector"
    writes: bool = False
    reranked: bool = True

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Fit the quantiser after taking each modality's mean off."""
        text_mean = np.concatenate(images.caption_vectors).mean(0)
        image_mean = images.vectors.mean(0)
        texts = [vectors - text_mean for vectors in images.caption_vectors]
        vectors = np.concatenate([images.vectors - image_mean, *texts]).astype(np.float32)
        quantiser = fit_residual(vectors, LEVELS, CODES, seed)
        counts = [_MODALITIES, *[CODES] * LEVELS]

        def symbols(pictures: FloatArray) -> list[tuple[int, ...]]:
            codes = quantiser.encode((pictures - image_mean).astype(np.float32))
            modality = np.full((len(codes), 1), _IMAGE, np.int64)
            return as_symbols(np.hstack([modality, codes]), counts)

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            return [[each] for each in symbols(later.vectors)]

        return FittedScheme(sum(counts), single(symbols(images.vectors), images), assign)
