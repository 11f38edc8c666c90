"""Ranking the members of reached leaves: image-text similarity fused with what the decoder believes (DESIGN, section 6)."""

from dataclasses import dataclass

import numpy as np

from model.retrieval.trie import Reached
from schemas.records import FloatArray, HalfArray, IntArray


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best images of one query, best first: `slots` (k,) int64, `scores` (k,) float32; `candidates` were scored."""

    slots: IntArray
    scores: FloatArray
    candidates: int


def rank(
    query: FloatArray,
    reached: Reached,
    leaf_scores: FloatArray,
    embeddings: HalfArray,
    scale: float,
    fusion_weight: float,
    count: int,
) -> Ranked:
    """score = scale·cosine + w·log Σ exp(leaf log-probability + posting weight) over the image's reached postings.

    `query` (D,) unit, `leaf_scores` (L,) of the leaves that `reached.source` counts, `embeddings` (N, D) float16 by slot.
    Ties go to the older image (lower slot).
    """
    if not len(reached.slots):
        return Ranked(np.empty(0, np.int64), np.empty(0, np.float32), 0)
    slots, at = np.unique(reached.slots, return_inverse=True)
    belief = log_sum_exp(leaf_scores[reached.source] + reached.weights, at, len(slots))
    cosine = embeddings[slots].astype(np.float32) @ query
    scores = (scale * cosine + fusion_weight * belief).astype(np.float32)
    best = np.argsort(-scores, kind="stable")[:count]
    return Ranked(slots=slots[best], scores=scores[best], candidates=len(slots))


def log_sum_exp(values: FloatArray, groups: IntArray, count: int) -> FloatArray:
    """log Σ exp of each group: `values` (P,), `groups` (P,) in 0..count-1, each group with at least one value → (count,)."""
    peak = np.full(count, -np.inf)
    np.maximum.at(peak, groups, values)
    total = np.bincount(groups, np.exp(values - peak[groups]), minlength=count)
    return (peak + np.log(total)).astype(np.float32)
