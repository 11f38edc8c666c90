"""Inductive assignment: the model generates identifiers of images it was not trained on.

Paper, section 5.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.decoding.beam import Guide, search_leaves
from model.decoding.decoder import Decoder
from model.decoding.leaves import Leaves
from model.identifiers.codebook import Codebook
from model.network.resize import Pixels
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray, Posting

# Beams of an assignment: enough for the alternates, with further leaves to spill into.
MIN_BEAMS = 8


class CodebookVote:
    """The codebook's own identifier of a picture, as a guide: 1 for each prefix of it, else 0."""

    def __init__(self, shape: IdentifierShape) -> None:
        self._shape = shape

    def promise(self, level: int, prefixes: Tensor, queries: Tensor) -> Tensor:
        """See `model.decoding.beam.Promises`; `queries` (B, 1) int64 are the codebook's leaves."""
        below = self._shape.leaves // self._shape.prefixes(level + 1)
        return (prefixes == queries // below).float()


class BeamSearchAssigner:
    """Assigns id1..id4 to images by a beam search in which any leaf is allowed.

    The codebook has a vote: at each level the beam on the way to the leaf that it computes from the
    encoder's vector is preferred to those that the model finds less than `vote` nats likelier. A
    small model alone gives a new picture the codebook's leaf once in five times, which is
    what queries have learnt to lead to (docs/experiments/guided.md).
    """

    def __init__(
        self,
        decoder: Decoder,
        postings: int,
        codebook: Codebook | None = None,
        vote: float = 0.0,
    ) -> None:
        """`postings`: the primary and the alternates that an image is posted under.

        Without a `codebook`, or with a `vote` of 0, the model alone says all leaves. A model that
        reads pictures by their vectors posts one: the codebook says its leaf, from the same vector,
        and further leaves fill what a query may rank with images that it finds in their own
        (docs/experiments/small.md).
        """
        self.decoder = decoder
        self.codebook = codebook
        self.vote = vote
        self.postings = 1 if self.reads_vectors else postings
        self._promises = CodebookVote(decoder.sigma.profile.shape)

    @property
    def reads_vectors(self) -> bool:
        """Whether the model reads pictures by an encoder's vectors, and needs no pixels."""
        projector = self.decoder.sigma.projector
        return projector is not None and projector.reading.pictures

    def assign(self, images: Pixels, vectors: FloatArray) -> list[Leaves]:
        """Leaves of each image: the best beam is primary, the next are alternates, then spill.

        `vectors` (N, D) are the encoder's of the images.
        """
        own = None if self.codebook is None else self.codebook.leaves(vectors)
        by_vote = own is not None and self.vote > 0 and not self.reads_vectors
        leaves, scores = self.search(images, vectors, own if by_vote else None)
        assigned: list[Leaves] = []
        for row, beams in enumerate(leaves):
            if own is not None and self.reads_vectors:
                primary = int(own[row])
                assigned.append(leaves_with_primary(primary, beams, scores[row], self.postings))
            else:
                assigned.append(leaves_from_beams(beams, scores[row], self.postings))
        return assigned

    def search(
        self, images: Pixels, vectors: FloatArray | None = None, votes: IntArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """(N, W) int64 leaves and (N, W) float32 log-probabilities of N images, best first.

        One of both is read: `images` may be empty where the model reads vectors. `votes` (N,) are
        the leaves that the codebook votes for; without, the model alone decides.
        """
        sigma = self.decoder.sigma
        if self.reads_vectors and sigma.projector is not None:
            if vectors is None:
                raise AssertionError("a model that reads vectors was asked without any")
            prompt = self.decoder.read_image_vectors(sigma.projector, vectors)
        else:
            prompt = self.decoder.read_images(sigma.preprocessor(images).to(self.decoder.device))
        guide = None
        if votes is not None:
            guide = Guide(self._promises, torch.from_numpy(votes).unsqueeze(1), self.vote)
        width = max(MIN_BEAMS, self.postings)
        beams = search_leaves(self.decoder, prompt, sigma.profile.shape, width, None, guide)
        found = beams.on_host()
        # A guide has looked at every leaf below the beams; no more are kept than of the others.
        return found.leaves[:, :width], found.scores[:, :width]


def leaves_from_beams(
    leaves: Sequence[int] | IntArray, scores: Sequence[float] | FloatArray, postings: int
) -> Leaves:
    """Split the (W,) beams of one image into postings and spill.

    A posting's weight is its log-probability relative to the primary's, and at most 0: one that
    the model finds likelier than the leaf of the codebook's vote must not outweigh it.
    """
    ranked: list[Posting] = []
    for leaf, score in zip(leaves, scores, strict=True):
        ranked.append(Posting(leaf=int(leaf), weight=min(0.0, float(score - scores[0]))))
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
