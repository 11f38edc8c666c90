"""Fitting a querybank: how much an image's nearness to any text counts, measured on texts kept out.

The bank is a sample of the captions of training. How sharp and how heavy it is (see
`model.network.querybank`) is chosen by known-item search: images are asked for by one text each,
and the reciprocal ranks in the gallery decide. Of half of them all captions stay out of the bank,
as those of later images will; the captions of the others may be in it, and tell against their own
image. Where nothing is gained for certain there is no bank.

Letters in shapes: N images, P of them asked for, G in the gallery, D width of the encoder.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from model.network.encoder import Encoder
from model.network.querybank import Querybank
from schemas.records import FloatArray, HalfArray, IntArray

# Texts of a bank: more are hardly better (docs/experiments/querybank.md), and each costs every
# image that is ranked for the first time. Of wide vectors fewer.
MOST_TEXTS = 4096
_MOST_NUMBERS = 1 << 20

# Fewer captions say nothing of what is near to any.
LEAST_TEXTS = 64

# Images that are asked for, with captions out of the bank: at most this many, and this share of
# those with a text. As many are asked for whose captions may be in it.
_MOST_ASIDE = 1000
_ASIDE_SHARE = 0.25
_LEAST_ASIDE = 24

# Images that texts are compared with, at most.
_MOST_GALLERY = 16_384

_TEMPERATURES = (0.35, 0.5, 0.7, 1.0)
_WEIGHTS = (0.25, 0.5, 0.75, 1.0)

# Standard errors by which the mean reciprocal rank must gain.
_CERTAIN = 2.0


def can_fit(queries: Sequence[str], captions: Sequence[Sequence[str]]) -> bool:
    """Whether there are texts enough to tell if a bank is of use.

    `queries` and `captions` as in `fit_querybank`.
    """
    asked = sum(bool(text.strip()) for text in queries)
    known = sum(map(len, captions))
    return asked * _ASIDE_SHARE >= _LEAST_ASIDE and known >= 2 * LEAST_TEXTS


def fit_querybank(
    encoder: Encoder,
    queries: Sequence[str],
    captions: Sequence[Sequence[str]],
    embeddings: HalfArray,
    seed: int,
) -> Querybank | None:
    """The bank of a generation; None where ranking without one is as good. Needs `can_fit`.

    `queries`: of each of the N images a text that training does not show, empty where it has none.
    `captions` are those that it shows, `embeddings` (N, D) float16 the ranking embeddings. The same
    arguments give the same bank.
    """
    rng = np.random.default_rng((seed, 11))
    texted = rng.permutation(np.flatnonzero([bool(text.strip()) for text in queries]))
    half = min(_MOST_ASIDE, int(len(texted) * _ASIDE_SHARE))
    aside, asked = texted[:half], texted[: 2 * half]
    is_aside = np.zeros(len(embeddings), np.bool_)
    is_aside[aside] = True
    others = rng.permutation(np.flatnonzero(~is_aside))
    size = min(MOST_TEXTS, _MOST_NUMBERS // encoder.width)
    texts = _sample([captions[row] for row in others.tolist()], size, rng)
    if len(texts) < LEAST_TEXTS:
        return None
    rest = others[~np.isin(others, asked)]
    gallery = np.concatenate([asked, rest[: _MOST_GALLERY - len(asked)]])
    best = best_numbers(
        encoder.embed_texts([queries[row] for row in asked.tolist()]),
        embeddings[gallery].astype(np.float32),
        Querybank(encoder.embed_texts(texts), 1.0, 1.0),
        encoder.scale,
    )
    if best is None:
        return None
    own = encoder.embed_texts(_sample(captions, size, rng))
    return Querybank(own, *best)


def best_numbers(
    queries: FloatArray, gallery: FloatArray, bank: Querybank, scale: float
) -> tuple[float, float] | None:
    """Temperature and weight of the best ranking; None where none is certainly better than without.

    `queries` (P, D) of which the first P of the `gallery` (G, D) are the images.
    """
    logits = scale * (queries @ gallery.T)
    before = _reciprocal_ranks(logits)
    best, best_gain = None, 0.0
    hubness = {
        temperature: Querybank(bank.vectors, temperature, 1.0).hubness(gallery, scale)
        for temperature in _TEMPERATURES
    }
    for temperature, weight in product(_TEMPERATURES, _WEIGHTS):
        gains = _reciprocal_ranks(logits - weight * hubness[temperature]) - before
        gain = float(gains.mean())
        error = float(gains.std()) / len(gains) ** 0.5
        if gain > max(best_gain, _CERTAIN * error):
            best, best_gain = (temperature, weight), gain
    return best


def _reciprocal_ranks(scores: FloatArray) -> FloatArray:
    """(P,) of the own images, the first P of scores (P, G); ties count against them."""
    own = np.diagonal(scores)[:, None]
    ranks: IntArray = (scores >= own).sum(axis=1)
    return (1.0 / ranks).astype(np.float32)


def _sample(captions: Sequence[Sequence[str]], count: int, rng: np.random.Generator) -> list[str]:
    """`count` different captions, or all where they are fewer."""
    texts = sorted({text for own in captions for text in own if text.strip()})
    chosen = np.sort(rng.permutation(len(texts))[:count])
    return [texts[place] for place in chosen.tolist()]
