"""Several identifiers an image, and dense re-ranking, as in GRDR."""

from dataclasses import dataclass

import numpy as np

from model.identifiers.rivals.residual import CODES, LEVELS, fit_residual
from model.identifiers.rivals.scheme import (
    FittedScheme,
    Identified,
    Identifier,
    SchemeImages,
    as_symbols,
)

# Identifiers of a later image, which has no captions.
_LATER = 3


@dataclass(frozen=True, slots=True)
class Several:
    """Codes of the picture's vector, and of each caption's: a caption is answered by its own."""

    name: str = "several identifiers (GRDR)"
    source: str = "GRDR, 2026"
    deviation: str = (
        "identifiers are residual codes that are fitted once, not learnt with the model"
    )
    later: str = "the three codes nearest to the picture's vector"
    writes: bool = False
    reranked: bool = True

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Fit one quantiser on the vectors of pictures and captions."""
        vectors = np.concatenate([images.vectors, *images.caption_vectors])
        quantiser = fit_residual(vectors, LEVELS, CODES, seed)
        counts = [CODES] * LEVELS
        pictures = as_symbols(quantiser.encode(images.vectors), counts)
        trained: list[Identified] = []
        for picture, texts in zip(pictures, images.caption_vectors, strict=True):
            trained.append(Identified(picture, tuple(as_symbols(quantiser.encode(texts), counts))))

        def assign(later: SchemeImages) -> list[list[Identifier]]:
            codes = quantiser.encode_several(later.vectors, _LATER)
            return [list(as_symbols(own, counts)) for own in codes]

        return FittedScheme(LEVELS * CODES, tuple(trained), assign)
