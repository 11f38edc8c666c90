"""Prefix means: they are what they say, and beams follow them where the decoder knows nothing."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from model.decoding.beam import Guide, search_leaves
from model.retrieval import prefix_means
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.trie import Trie
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape(codes=(3, 4, 2, 2), suffixes=8)
WIDTH = 8


@dataclass
class Clueless:
    """A decoder to which every code is as likely as any other; state of one prompt."""

    batch: int = 1
    device: torch.device = torch.device("cpu")

    def begin(self, prompt: None) -> "Clueless":
        return self

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        codes = SHAPE.codes[level]
        return torch.full((1, prefixes.shape[1], codes), -float(np.log(codes)))


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return rng.integers(0, SHAPE.leaves, count), vectors


def test_a_mean_is_that_of_all_images_below_a_prefix_posted_at_once_or_later() -> None:
    leaves, vectors = images(40)
    means = PrefixMeans(SHAPE, WIDTH)
    means.add(leaves[:25], vectors[:25])
    means.add(leaves[25:], vectors[25:])
    query = torch.eye(WIDTH)[:1]
    for level in range(4):
        below = SHAPE.leaves // SHAPE.prefixes(level + 1)
        prefixes = torch.arange(SHAPE.prefixes(level + 1)).unsqueeze(0)
        found = means.promise(level, prefixes, query)
        assert found is not None
        for prefix, value in enumerate(found[0].tolist()):
            own = vectors[leaves // below == prefix]
            expected = float(own[:, 0].mean()) if len(own) else 0.0
            assert value == pytest.approx(expected + above(own), abs=1e-5)


def above(own: np.ndarray) -> float:
    """By how much the best of (n, D) vectors is expected to lie above their mean."""
    if len(own) < 2:
        return 0.0
    spread = np.sqrt(max(0.0, 1 - float(np.square(own.mean(0)).sum())))
    return float(prefix_means._DEVIATION * spread * np.sqrt(2 * np.log(len(own))))


def test_of_two_prefixes_with_one_mean_that_with_the_more_varied_images_promises_more() -> None:
    means = PrefixMeans(SHAPE, 2)
    # Leaf 0: two images alike. Leaf 1: two that lie to both sides of the same direction.
    alike = np.array([[0.6, 0.0], [0.6, 0.0]], np.float32)
    apart = np.array([[0.6, 0.8], [0.6, -0.8]], np.float32)
    means.add(np.array([0, 0, 1, 1]), np.concatenate([alike / 0.6, apart]))
    query = torch.tensor([[1.0, 0.0]])
    sure, varied = promises(means, query)
    assert sure == pytest.approx(1.0)
    deviation = prefix_means._DEVIATION * 0.8 * np.sqrt(2 * np.log(2))
    assert varied == pytest.approx(0.6 + deviation)


def promises(means: PrefixMeans, query: torch.Tensor) -> list[float]:
    found = means.promise(3, torch.tensor([[0, 1]]), query)
    assert found is not None
    return [float(value) for value in found[0]]


def test_deleted_images_promise_nothing_any_more() -> None:
    leaves, vectors = images(40)
    means, kept = PrefixMeans(SHAPE, WIDTH), PrefixMeans(SHAPE, WIDTH)
    means.add(leaves, vectors)
    means.add(leaves[:10], vectors[:10], sign=-1)
    kept.add(leaves[10:], vectors[10:])
    query = torch.eye(WIDTH)[:1]
    for level in range(4):
        prefixes = torch.arange(SHAPE.prefixes(level + 1)).unsqueeze(0)
        found, expected = (each.promise(level, prefixes, query) for each in (means, kept))
        assert found is not None
        assert expected is not None
        assert torch.allclose(found, expected, atol=1e-5)


def test_beams_follow_what_is_below_where_the_decoder_knows_nothing() -> None:
    leaves, vectors = images(40)
    trie = Trie(SHAPE)
    trie.insert(leaves, np.arange(40), np.zeros(40, np.float32), np.arange(40) % 8)
    means = PrefixMeans(SHAPE, WIDTH)
    means.add(leaves, vectors)
    wanted = int(np.bincount(leaves, minlength=SHAPE.leaves).argmax())
    query = vectors[leaves == wanted].mean(0, keepdims=True)
    guide = Guide(means, torch.from_numpy(query), weight=20.0)
    clueless = Clueless()
    guided = search_leaves(clueless, None, SHAPE, 6, trie.branches, guide)
    assert wanted in guided.leaves[0].tolist()
    # All leaves below the six prefixes of three codes, in the order of what they promise.
    assert len(guided.leaves[0]) == 6 * SHAPE.codes[3]
    exists = guided.scores > float("-inf")
    promise = means.promise(3, guided.leaves, torch.from_numpy(query))
    assert promise is not None
    assert (promise[exists].diff() <= 1e-5).all()
    # The scores stay the decoder's own.
    assert torch.allclose(guided.scores[exists], torch.tensor(-float(np.log(SHAPE.leaves))))
    unguided = search_leaves(clueless, None, SHAPE, 6, trie.branches)
    assert unguided.leaves[0].tolist() != guided.leaves[0].tolist()


def test_levels_that_would_take_too_much_memory_are_not_guided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefix_means, "_MOST_NUMBERS", 12 * WIDTH)
    means = PrefixMeans(SHAPE, WIDTH)
    means.add(*images(5))
    query = torch.ones(1, WIDTH)
    assert means.promise(1, torch.zeros((1, 1), dtype=torch.int64), query) is not None
    assert means.promise(2, torch.zeros((1, 1), dtype=torch.int64), query) is None
