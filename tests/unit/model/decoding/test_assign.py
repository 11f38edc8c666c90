"""Assignment of new pictures: what the codebook's vote does to the model's identifiers."""

from functools import cache

import numpy as np
import pytest
import torch

from model.decoding.assign import BeamSearchAssigner, CodebookVote
from model.decoding.decoder import Decoder
from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.network.parts import parts_from_base
from schemas.records import ByteArray, FloatArray, IntArray
from tests.unit.model.conftest import WIDTH, small_base, small_profile

COUNT = 12
POSTINGS = 3
SHAPE = small_profile().shape


@cache
def decoder() -> Decoder:
    return Decoder(parts_from_base(small_base(), small_profile()).sigma)


@cache
def pictures() -> list[ByteArray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (COUNT, 56, 56, 3), dtype=np.uint8))


@cache
def vectors() -> FloatArray:
    rows = np.random.default_rng(1).standard_normal((80, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@cache
def codebook() -> Codebook:
    return fit_codebook(vectors(), CodebookConfig(SHAPE))


@cache
def opinions() -> FloatArray:
    """(COUNT, leaves) the model's log-probability of each leaf, by a search of all of them."""
    leaves, scores = BeamSearchAssigner(decoder(), SHAPE.leaves).search(pictures())
    by_leaf = np.zeros_like(scores)
    np.put_along_axis(by_leaf, leaves, scores, axis=1)
    return by_leaf


def primaries(vote: float, own: Codebook | None) -> IntArray:
    assigned = BeamSearchAssigner(decoder(), POSTINGS, own, vote).assign(
        pictures(), vectors()[:COUNT]
    )
    for row, leaves in enumerate(assigned):
        posted = [posting.leaf for posting in leaves.postings]
        assert len(posted) == len(set(posted)) == POSTINGS
        assert not set(posted) & set(leaves.spill)
        assert leaves.postings[0].weight == 0.0
        assert all(posting.weight <= 0.0 for posting in leaves.postings)
        # Confidence stays the model's own.
        assert leaves.confidence == pytest.approx(opinions()[row, posted[0]], abs=1e-4)
    return np.array([leaves.postings[0].leaf for leaves in assigned])


def test_without_a_vote_the_model_alone_decides() -> None:
    likeliest = opinions().argmax(1)
    assert primaries(0.0, codebook()).tolist() == likeliest.tolist()
    assert primaries(8.0, None).tolist() == likeliest.tolist()


def test_a_vote_without_end_gives_the_codebooks_identifier() -> None:
    own = codebook().leaves(vectors()[:COUNT])
    assert primaries(1000.0, codebook()).tolist() == own.tolist()
    assert own.tolist() != opinions().argmax(1).tolist()


def test_a_larger_vote_is_followed_more_often_and_the_model_can_overrule_it() -> None:
    own = codebook().leaves(vectors()[:COUNT])
    agreed = [int((primaries(vote, codebook()) == own).sum()) for vote in (0.05, 0.2, 0.8, 3.0)]
    assert agreed == sorted(agreed)
    assert 0 <= agreed[0] < agreed[-1] <= COUNT
    assert any(0 < count < COUNT for count in agreed)


def test_the_vote_is_for_each_prefix_of_the_codebooks_leaf_and_for_nothing_else() -> None:
    votes = torch.tensor([[SHAPE.leaves - 1], [0]])
    for level in range(4):
        prefixes = torch.arange(SHAPE.prefixes(level + 1)).repeat(2, 1)
        promise = CodebookVote(SHAPE).promise(level, prefixes, votes)
        assert promise.sum(1).tolist() == [1.0, 1.0]
        assert promise.argmax(1).tolist() == [SHAPE.prefixes(level + 1) - 1, 0]
