"""CIDEr-D: how much a caption of an image says what the image's other captions say.

Vedantam, Zitnick and Parikh 2015, "CIDEr: Consensus-based Image Description Evaluation", with the
clipping and the length penalty of its variant D. Words that many images share count little, so a
fluent caption of another image scores low.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.records import FloatArray

# n-grams of 1 to 4 words, each length with the same weight.
_LONGEST = 4

# Standard deviation of the length penalty, in words.
_LENGTH_SPREAD = 6.0

# Scores are between 0 and this; the paper's factor.
_SCALE = 10.0

# n consecutive words.
Gram = tuple[str, ...]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class _WeightedText:
    """The n-grams of a text with their tf-idf weights, those of each length apart."""

    words: int
    weights: tuple[Mapping[Gram, float], ...]
    norms: tuple[float, ...]


class CiderScorer:
    """Scores captions against the captions that people wrote of the same images.

    How rare an n-gram is, is counted over the N images given at the start.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """`references`: the captions of each of the N images."""
        documents: Counter[Gram] = Counter()
        for captions in references:
            grams: set[Gram] = set()
            for caption in captions:
                grams.update(_grams(caption))
            documents.update(grams)
        self._documents = documents
        self._log_images = math.log(max(1, len(references)))
        self._references: list[list[_WeightedText]] = []
        for captions in references:
            self._references.append([self._weighted(caption) for caption in captions])

    def scores(self, captions: Sequence[str], rows: Sequence[int]) -> FloatArray:
        """(C,) float32 in 0..10: caption c as a description of image `rows[c]`.

        0 for an image without references.
        """
        scores = np.zeros(len(captions), np.float32)
        for position, (caption, row) in enumerate(zip(captions, rows, strict=True)):
            references = self._references[row]
            if references:
                text = self._weighted(caption)
                total = sum(_similarity(text, reference) for reference in references)
                scores[position] = _SCALE * total / len(references)
        return scores

    def _weighted(self, text: str) -> _WeightedText:
        weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(_LONGEST))
        for gram, count in _grams(text).items():
            # An n-gram that no reference has is as rare as one that a single image has.
            rarity = self._log_images - math.log(max(1, self._documents[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        norms = tuple(math.sqrt(sum(w * w for w in own.values())) for own in weights)
        return _WeightedText(len(_words(text)), weights, norms)


def _similarity(text: _WeightedText, reference: _WeightedText) -> float:
    """Mean cosine over the lengths of n-grams, 0..1, less for a text of another length."""
    total = 0.0
    for length in range(_LONGEST):
        norm = text.norms[length] * reference.norms[length]
        if not norm:
            continue
        other = reference.weights[length]
        product = 0.0
        for gram, weight in text.weights[length].items():
            # Clipped: a word that is repeated again and again gains nothing.
            product += min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0)
        total += product / norm
    apart = text.words - reference.words
    penalty = math.exp(-(apart**2) / (2 * _LENGTH_SPREAD**2))
    return penalty * total / _LONGEST


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(text: str) -> Counter[Gram]:
    """All n-grams of 1 to 4 words, with their counts."""
    words = _words(text)
    grams: Counter[Gram] = Counter()
    for length in range(1, _LONGEST + 1):
        for start in range(len(words) - length + 1):
            grams[tuple(words[start : start + length])] += 1
    return grams
