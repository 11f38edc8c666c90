"""Rank the members of reached leaves.

The score fuses two opinions: how similar image and text are for the encoder, more than the image is
to any text, and how likely the image's leaves are for the decoder.
"""

from dataclasses import dataclass

import numpy as np

from model.retrieval.hubness import HubnessBySlot
from model.retrieval.shards import Reached
from schemas.records import FloatArray, HalfArray, IntArray


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best images of one query, best first."""

    slots: IntArray
    """(k,) int64"""
    scores: FloatArray
    """(k,) float32"""
    cosines: FloatArray
    """(k,) float32, of each with the query's vector"""
    candidates: int
    """Images that were scored."""


def rank(
    query: FloatArray,
    reached: Reached,
    leaf_scores: FloatArray,
    embeddings: HalfArray,
    scale: float,
    fusion_weight: float,
    count: int,
    hubness: HubnessBySlot | None = None,
) -> Ranked:
    """The `count` best members: score = scale · cosine + fusion_weight · belief - hubness penalty.

    An image's belief is log Σ exp(leaf log-probability + posting weight) over its reached postings,
    so an image under several likely leaves gains from each. Ties go to the older image, the lower
    slot.

    `query` (D,) float32 unit length, `leaf_scores` (L,) log-probabilities of the leaves that
    `reached.source` counts, `embeddings` (N, D) float16 by slot, `scale` the encoder's logit scale.
    """
    if not len(reached.slots):
        nothing = np.empty(0, np.float32)
        return Ranked(np.empty(0, np.int64), nothing, nothing, 0)
    slots, belief = beliefs_of(reached, leaf_scores[reached.source])
    members = embeddings[slots].astype(np.float32)
    cosine = members @ query
    scores = (scale * cosine + fusion_weight * belief).astype(np.float32)
    if hubness is not None:
        scores -= hubness.penalties(slots, members)
    # A stable sort of ascending slots decides ties.
    best = np.argsort(-scores, kind="stable")[:count]
    return Ranked(
        slots=slots[best], scores=scores[best], cosines=cosine[best], candidates=len(slots)
    )


def beliefs_of(reached: Reached, scores: FloatArray) -> tuple[IntArray, FloatArray]:
    """The (N,) slots of reached images in ascending order, and (N,) what is believed of each.

    log Σ exp(score + posting weight) over an image's P reached postings, with `scores` (P,).
    """
    slots, image_of_posting = np.unique(reached.slots, return_inverse=True)
    return slots, log_sum_exp(scores + reached.weights, image_of_posting, len(slots))


def log_sum_exp(values: FloatArray, groups: IntArray, count: int) -> FloatArray:
    """log Σ exp of each group, (count,) float32.

    `values` (P,), `groups` (P,) in 0..count-1; each group has at least one value.
    """
    # Without its peak taken out, a group of very small log-probabilities would sum to log 0.
    peak = np.full(count, -np.inf)
    np.maximum.at(peak, groups, values)
    total = np.bincount(groups, np.exp(values - peak[groups]), minlength=count)
    return (peak + np.log(total)).astype(np.float32)
