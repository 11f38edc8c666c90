"""Keywords as identifiers, as SemCORE's structured natural-language identifiers have them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from model.identifiers.rivals.scheme import FittedScheme, Identifier, SchemeImages, single

# Words of an identifier.
_WORDS = 4


@dataclass(frozen=True, slots=True)
class Keywords:
    """The words that set an image's captions apart from those of others, rarest first."""

    name: str = "caption keywords (SemCORE)"
    source: str = "Li et al. 2025a"
    deviation: str = (
        "words are chosen by tf-idf, not by a large model; its generative verification is left out"
    )
    later: str = "the keywords that the trained model writes of the picture"
    writes: bool = True
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Choose the words of each image."""
        bags = [Counter(_words(captions)) for captions in images.captions]
        images_with = Counter(word for bag in bags for word in bag)
        texts: list[Identifier] = []
        for bag in bags:
            worth = {
                word: count * log(len(bags) / images_with[word]) for word, count in bag.items()
            }
            best = sorted(bag, key=lambda word: (-worth[word], word))[:_WORDS]
            texts.append(" ".join(best))
        return FittedScheme(0, single(texts, images), None)


def _words(captions: Sequence[str]) -> list[str]:
    return [word for text in captions for word in re.findall(r"\w+", text.lower())]
