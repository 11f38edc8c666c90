"""Relevance evaluation: how often nonsense is called irrelevant, and known items are not.

Nonsense is drawn anew, with another seed than the calibration's, and asked by the product's search;
what counts is the most relevant image of its answer. A known item counts twice: by its own image,
found or not, and by the most relevant image of the answer, which may be another one that fits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from model.retrieval.relevance import relevances_of
from model.training.nonsense import nonsense
from ops.evaluation_queries import DEPTH, EvaluationQueries
from schemas.records import FloatArray, JsonObject, ManifestEntry
from schemas.relevance import BORDER, RelevanceCalibration
from workers.query.engine import RankedImages
from workers.query.model_engine import ModelEngine
from workers.query.searcher import Searcher

# Texts of nonsense of each kind.
NONSENSE = 200

# Texts decoded together, as many as the query worker takes at once.
_BATCH = 16

# Draws other texts than a calibration with the same seed.
_OTHER_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class KnownRelevance:
    """Known items of one split, as shares from 0 to 1."""

    queries: int
    own_above: float
    """Of the image that was asked for, whether the search found it or not."""
    best_above: float
    """Of the most relevant image of the answer."""


@dataclass(frozen=True, slots=True)
class RelevanceEvaluation:
    """Shares on the right side of `schemas.relevance.BORDER`."""

    nonsense_below: Mapping[str, float]
    """By kind, and `all` of them together."""
    known: Mapping[str, KnownRelevance]
    """By split."""

    def to_json(self) -> JsonObject:
        """`relevance` in the document of `sigma evaluate`."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RelevanceEvaluation":
        """Read what `to_json` wrote."""
        known = {name: KnownRelevance(**found) for name, found in document["known"].items()}
        return cls(document["nonsense_below"], known)

    def to_text(self) -> list[str]:
        """The same for people."""
        kinds = ", ".join(
            f"{name} {100 * share:.1f}%"
            for name, share in self.nonsense_below.items()
            if name != "all"
        )
        lines = [
            f"relevance of nonsense below {BORDER}: {100 * self.nonsense_below['all']:.1f}%"
            f" ({kinds})"
        ]
        for name, found in self.known.items():
            lines.append(
                f"relevance of known items, {name}, at least {BORDER}: own image"
                f" {100 * found.own_above:.1f}%, best of the answer {100 * found.best_above:.1f}%"
            )
        return lines


def evaluate_relevance(
    searcher: Searcher[ModelEngine],
    entries: Sequence[ManifestEntry],
    splits: Mapping[str, EvaluationQueries],
    seed: int,
) -> RelevanceEvaluation | None:
    """Measure the calibration of a generation; None where it has none."""
    calibration = searcher.generation.config.training.relevance
    if calibration is None:
        return None
    captions = list(chain.from_iterable((*each.captions, *each.test_captions) for each in entries))
    below: dict[str, float] = {}
    everything: list[bool] = []
    for kind, texts in nonsense(captions, NONSENSE, seed + _OTHER_SEED).items():
        answers = chain.from_iterable(_answers(searcher, texts))
        best = [_best(calibration, answer) < BORDER for answer in answers]
        below[kind] = float(np.mean(best))
        everything += best
    below["all"] = float(np.mean(everything)) if everything else 0.0
    known = {name: _known(searcher, calibration, own) for name, own in splits.items()}
    return RelevanceEvaluation(below, known)


def _known(
    searcher: Searcher[ModelEngine], calibration: RelevanceCalibration, queries: EvaluationQueries
) -> KnownRelevance:
    engine = searcher.engine
    slots = engine.gallery.slots(np.array(queries.image_keys, np.int64))
    vectors = engine.encoder.embed_texts(list(queries.texts))
    images = engine.gallery.embeddings[slots].astype(np.float32)
    cosines: FloatArray = np.einsum("qd,qd->q", vectors, images)
    own = relevances_of(calibration, cosines) >= BORDER
    answers = chain.from_iterable(_answers(searcher, queries.texts))
    best = [_best(calibration, answer) >= BORDER for answer in answers]
    return KnownRelevance(len(queries), float(own.mean()), float(np.mean(best)))


def _answers(
    searcher: Searcher[ModelEngine], texts: Sequence[str]
) -> Iterator[Sequence[RankedImages]]:
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        yield searcher.engine.answer(batch, DEPTH, searcher.settings)


def _best(calibration: RelevanceCalibration, answer: RankedImages) -> float:
    """The highest relevance of an answer, 0 of one without images."""
    if answer.cosines is None or not len(answer.cosines):
        return 0.0
    return float(relevances_of(calibration, answer.cosines).max())
