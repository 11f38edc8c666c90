"""Inductive assignment: the model generates identifiers of images it was not trained on.

Paper, section 5.
"""

from collections.abc import Sequence

import numpy as np

from model.decoding.beam import search_leaves
from model.decoding.decoder import Decoder
from model.decoding.leaves import Leaves
from model.network.resize import Pixels
from schemas.records import FloatArray, IntArray, Posting

# Beams of an assignment: enough for the alternates, with further leaves to spill into.
MIN_BEAMS = 8


class BeamSearchAssigner:
    """Assigns id1..id4 to images by a beam search in which any leaf is allowed."""

    def __init__(self, decoder: Decoder, postings: int) -> None:
        """`postings`: the primary and the alternates that an image is posted under.

        A model that reads pictures by their vectors posts one: the codebook says its leaf, from the
        same vector, and further leaves fill what a query may rank with images that it finds in
        their own (docs/experiments/small.md).
        """
        self.decoder = decoder
        self.postings = 1 if self.reads_vectors else postings

    @property
    def reads_vectors(self) -> bool:
        """Whether the model reads pictures by an encoder's vectors, and needs no pixels."""
        projector = self.decoder.sigma.projector
        return projector is not None and projector.reading.pictures

    def assign(self, images: Pixels, vectors: FloatArray | None = None) -> list[Leaves]:
        """Leaves of each image: the best beam is primary, the next are alternates, then spill.

        `vectors` (N, D) are the encoder's of the images.
        """
        leaves, scores = self.search(images, vectors)
        return [
            leaves_from_beams(leaves[row], scores[row], self.postings) for row in range(len(leaves))
        ]

    def search(
        self, images: Pixels, vectors: FloatArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """(N, W) int64 leaves and (N, W) float32 log-probabilities of N images, best first.

        One of both is read: `images` may be empty where the model reads vectors.
        """
        sigma = self.decoder.sigma
        if self.reads_vectors and sigma.projector is not None:
            if vectors is None:
                raise AssertionError("a model that reads vectors was asked without any")
            prompt = self.decoder.read_image_vectors(sigma.projector, vectors)
        else:
            prompt = self.decoder.read_images(sigma.preprocessor(images).to(self.decoder.device))
        beams = search_leaves(
            self.decoder, prompt, sigma.profile.shape, max(MIN_BEAMS, self.postings), None
        )
        leaves, scores, _ = beams.on_host()
        return leaves, scores


def leaves_from_beams(
    leaves: Sequence[int] | IntArray, scores: Sequence[float] | FloatArray, postings: int
) -> Leaves:
    """Split the (W,) beams of one image into postings and spill.

    A posting's weight is its log-probability relative to the primary's.
    """
    ranked: list[Posting] = []
    for leaf, score in zip(leaves, scores, strict=True):
        ranked.append(Posting(leaf=int(leaf), weight=float(score - scores[0])))
    return Leaves(
        postings=tuple(ranked[:postings]),
        spill=tuple(posting.leaf for posting in ranked[postings:]),
        confidence=float(scores[0]),
    )


def leaves_with_primary(
    leaf: int, leaves: Sequence[int] | IntArray, scores: Sequence[float] | FloatArray, postings: int
) -> Leaves:
    """The same where the primary leaf is known already, and the (W,) beams give the others."""
    kept = postings_with_primary(leaf, leaves, scores, postings)
    posted = {posting.leaf for posting in kept}
    spill = tuple(int(other) for other in leaves if int(other) not in posted)
    return Leaves(postings=kept, spill=spill, confidence=float(scores[0]))


def postings_with_primary(
    leaf: int, leaves: Sequence[int] | IntArray, scores: Sequence[float] | FloatArray, postings: int
) -> tuple[Posting, ...]:
    """Postings of a training image: its own leaf first, then the model's best other leaves.

    `leaves` and `scores` (W,) are the beams of the image, best first. Weights are relative to the
    primary's log-probability (to the lowest of the beams where the primary is not among them), and
    at most 0.
    """
    beam_leaves = np.asarray(leaves)
    rows = np.flatnonzero(beam_leaves == leaf)
    primary_score = float(scores[int(rows[0])] if len(rows) else min(scores))
    alternates: list[Posting] = []
    for other, score in zip(beam_leaves, scores, strict=True):
        if int(other) != leaf:
            # The primary is what the codebook says; an alternate that the model prefers must not
            # outweigh it.
            weight = min(0.0, float(score) - primary_score)
            alternates.append(Posting(int(other), weight))
    return (Posting(leaf, 0.0), *alternates[: postings - 1])
