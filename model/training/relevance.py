"""Relevance calibration: what a cosine says of whether a text was meant for any picture at all.

Cosines of two generations, or of two encoders, cannot be compared, and no cosine says by itself
that an image fits. So each generation's are fitted, by one logistic curve (Platt 1999), to texts
that were held out of training with their own images, and to nonsense (`model.training.nonsense`)
with the image that is nearest to it.

Letters in shapes: N images, B texts, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from model.network.encoder import Encoder
from model.retrieval.relevance import relevances_of
from model.training.nonsense import nonsense
from schemas.records import FloatArray, HalfArray, IntArray
from schemas.relevance import BORDER, RelevanceCalibration

# Pairs that are fitted to and measured on, at most.
MOST_PAIRS = 1000

# Fewer pairs place a curve nowhere in particular.
LEAST_PAIRS = 24

# Texts of nonsense of each kind, as a share of the pairs.
_NONSENSE_SHARE = 0.5

# An image for nonsense counts as twice as bad as a known one that is called irrelevant: of the
# first one in twenty is allowed, of the second one in ten.
_NONSENSE_WEIGHT = 2.0

# Inverse strength of the penalty on the slope, of standardised cosines.
_FREEDOM = 10.0

# Texts and images that are compared at a time.
_BATCH = 256
_IMAGES = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class RelevanceCosines:
    """What a calibration is fitted to, or measured on."""

    known: FloatArray
    """(P,) of held-out texts with their own images"""
    nonsense: Mapping[str, FloatArray]
    """By kind: of texts with the images nearest to them."""

    @property
    def all_nonsense(self) -> FloatArray:
        """Of all kinds."""
        return np.concatenate([np.zeros(0, np.float32), *self.nonsense.values()])

    def half(self, first: bool) -> "RelevanceCosines":
        """Every second text of each sort."""
        start = 0 if first else 1
        kinds = {kind: cosines[start::2] for kind, cosines in self.nonsense.items()}
        return RelevanceCosines(self.known[start::2], kinds)


def calibrate(
    encoder: Encoder,
    queries: Sequence[str],
    captions: Sequence[Sequence[str]],
    embeddings: HalfArray,
    seed: int,
) -> RelevanceCalibration | None:
    """The calibration of a generation; None where too few images have a text.

    `queries`: of each of the N images a text that training does not show, empty where it has none.
    `captions` are those that it shows, `embeddings` (N, D) float16 the ranking embeddings. What is
    fitted to one half of the texts is measured on the other. The same arguments give the same.
    """
    rows = np.flatnonzero([bool(text.strip()) for text in queries])
    if len(rows) < LEAST_PAIRS:
        return None
    rng = np.random.default_rng((seed, 7))
    rows = rng.permutation(rows)[:MOST_PAIRS]
    texts = [text for own in captions for text in own] or list(queries)
    found = measure(encoder, [queries[row] for row in rows.tolist()], rows, texts, embeddings, seed)
    if not len(found.all_nonsense):
        return None
    fitted = fit(found.half(first=True))
    aside = found.half(first=False)
    return RelevanceCalibration(
        slope=fitted.slope,
        offset=fitted.offset,
        pairs=len(found.known),
        nonsense=len(found.all_nonsense),
        known_above=share_above(fitted, aside.known),
        nonsense_below=1.0 - share_above(fitted, aside.all_nonsense),
    )


def measure(
    encoder: Encoder,
    queries: Sequence[str],
    rows: IntArray,
    captions: Sequence[str],
    embeddings: HalfArray,
    seed: int,
) -> RelevanceCosines:
    """The cosines of P texts with their images, rows (P,) of `embeddings` (N, D), and of nonsense.

    Nonsense is made of `captions`, and compared with all N images.
    """
    known: list[FloatArray] = [np.zeros(0, np.float32)]
    for start in range(0, len(queries), _BATCH):
        vectors = encoder.embed_texts(queries[start : start + _BATCH])
        own = embeddings[rows[start : start + _BATCH]].astype(np.float32)
        known.append(np.einsum("bd,bd->b", vectors, own))
    texts = nonsense(captions, max(1, round(_NONSENSE_SHARE * len(queries))), seed)
    nearest = {kind: _nearest(encoder, own, embeddings) for kind, own in texts.items()}
    return RelevanceCosines(np.concatenate(known), nearest)


def fit(cosines: RelevanceCosines) -> RelevanceCalibration:
    """The curve through known and nonsense; its shares are left at 0, for others to measure."""
    bad = cosines.all_nonsense
    values = np.concatenate([cosines.known, bad]).astype(np.float64)
    weights = np.concatenate(
        [
            np.full(len(cosines.known), 0.5 / len(cosines.known)),
            np.full(len(bad), 0.5 * _NONSENSE_WEIGHT / len(bad)),
        ]
    )
    middle, spread = float(values.mean()), max(float(values.std()), 1e-6)
    is_known = np.arange(len(values)) < len(cosines.known)
    curve = LogisticRegression(C=_FREEDOM)
    curve.fit(((values - middle) / spread)[:, None], is_known, weights * len(values))
    # Of a text side that knows nothing known items are no nearer than nonsense. No image is
    # relevant then, but the nearer one never the less so.
    slope = max(float(curve.coef_[0, 0]), 1e-3) / spread
    offset = float(curve.intercept_[0]) - slope * middle
    return RelevanceCalibration(slope, offset, len(cosines.known), len(bad), 0.0, 0.0)


def share_above(calibration: RelevanceCalibration, cosines: FloatArray) -> float:
    """The share of images with cosines (P,) that are relevant; 0 of none."""
    if not len(cosines):
        return 0.0
    return float((relevances_of(calibration, cosines) >= BORDER).mean())


def _nearest(encoder: Encoder, texts: Sequence[str], embeddings: HalfArray) -> FloatArray:
    """(B,) cosines of texts with the images nearest to them."""
    best = [np.zeros(0, np.float32)]
    for start in range(0, len(texts), _BATCH):
        vectors = encoder.embed_texts(texts[start : start + _BATCH])
        nearest = np.full(len(vectors), -1.0, np.float32)
        for row in range(0, len(embeddings), _IMAGES):
            block = embeddings[row : row + _IMAGES].astype(np.float32)
            nearest = np.maximum(nearest, (vectors @ block.T).max(1))
        best.append(nearest)
    return np.concatenate(best)
