"""Inductive assignment: the model generates the identifier of an image that it was never trained on (paper, section 3.3)."""

from collections.abc import Sequence

import numpy as np

from model.decoding.beam import Beams, search_leaves
from model.decoding.decoder import Decoder
from model.decoding.leaves import Leaves
from model.network.resize import Pixels
from schemas.records import FloatArray, IntArray, Posting

__all__ = ["BEAMS", "BeamSearchAssigner", "Leaves", "leaves_from_beams", "postings_with_primary"]

BEAMS = 8
"""Beams of an assignment: enough for the alternates, and further leaves to spill into."""


class BeamSearchAssigner:
    """Generates id1..id4 of images with any leaf allowed, new ones too."""

    def __init__(self, decoder: Decoder, postings: int) -> None:
        self.decoder = decoder
        self.postings = postings

    def assign(self, images: Pixels) -> list[Leaves]:
        """Leaves of each image: the best beam is the primary, the next ones alternates, weighted by log-probability."""
        leaves, scores = self.search(images)
        return [
            leaves_from_beams(leaves[row], scores[row], self.postings) for row in range(len(leaves))
        ]

    def search(self, images: Pixels) -> tuple[IntArray, FloatArray]:
        """(N, W) leaves and log-probabilities, best first."""
        sigma = self.decoder.sigma
        given = sigma.inputs(images).to(self.decoder.device)
        width = max(BEAMS, self.postings)
        found: Beams = search_leaves(
            self.decoder, self.decoder.read_images(given), sigma.profile.shape, width, None
        )
        return found.leaves.cpu().numpy(), found.scores.cpu().numpy()


def leaves_from_beams(
    leaves: Sequence[int] | IntArray, scores: Sequence[float] | FloatArray, postings: int
) -> Leaves:
    """One row of a search as postings and spill."""
    best = [
        Posting(leaf=int(leaf), weight=float(score - scores[0]))
        for leaf, score in zip(leaves, scores, strict=True)
    ]
    return Leaves(
        postings=tuple(best[:postings]),
        spill=tuple(p.leaf for p in best[postings:]),
        confidence=float(scores[0]),
    )


def postings_with_primary(
    leaf: int, leaves: Sequence[int] | IntArray, scores: Sequence[float] | FloatArray, postings: int
) -> tuple[Posting, ...]:
    """Postings of a training image: its identifier is the primary, the model's best other leaves are the alternates.

    Weights are relative to the primary's log-probability (the least of the beams when it is not among them), at most 0.
    """
    order = np.asarray(leaves)
    at = np.flatnonzero(order == leaf)
    own = float(scores[int(at[0])] if len(at) else min(scores))
    others = [
        Posting(int(other), min(0.0, float(score) - own))
        for other, score in zip(order, scores, strict=True)
        if int(other) != leaf
    ]
    return (Posting(leaf, 0.0), *others[: postings - 1])
