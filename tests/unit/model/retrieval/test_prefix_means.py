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
        found = means.similarities(level, prefixes, query)
        assert found is not None
        for prefix, value in enumerate(found[0].tolist()):
            own = vectors[leaves // below == prefix]
            expected = float(own[:, 0].mean()) if len(own) else 0.0
            assert value == pytest.approx(expected, abs=1e-5)


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
    # The scores stay the decoder's own.
    assert torch.allclose(guided.scores, torch.tensor(-float(np.log(SHAPE.leaves))))
    unguided = search_leaves(clueless, None, SHAPE, 6, trie.branches)
    assert unguided.leaves[0].tolist() != guided.leaves[0].tolist()


def test_levels_that_would_take_too_much_memory_are_not_guided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefix_means, "_MOST_NUMBERS", 12 * WIDTH)
    means = PrefixMeans(SHAPE, WIDTH)
    means.add(*images(5))
    query = torch.ones(1, WIDTH)
    assert means.similarities(1, torch.zeros((1, 1), dtype=torch.int64), query) is not None
    assert means.similarities(2, torch.zeros((1, 1), dtype=torch.int64), query) is None
