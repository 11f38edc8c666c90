"""The peers and draws of `sigma bench trie`."""

import numpy as np
import torch

from model.retrieval.trie import Trie
from ops.bench.frozen_trie import FrozenTrie
from ops.bench.trie import trie
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape((4, 3, 5, 6), 8)


def test_a_frozen_trie_allows_what_the_live_one_allows() -> None:
    rng = np.random.default_rng(0)
    leaves, slots = rng.integers(0, SHAPE.leaves, 60), np.arange(60)
    live, frozen = Trie(SHAPE), FrozenTrie(SHAPE, leaves, slots)
    live.insert(leaves, slots, np.zeros(60, np.float32), np.zeros(60, np.int64))
    prefixes = torch.from_numpy(leaves // (SHAPE.leaves // SHAPE.prefixes(2)))
    rows = frozen.rows(prefixes)
    expected = live.branches.children(2, prefixes) > 0
    assert torch.equal(frozen.children(2, rows), expected)


def test_the_benchmark_reports_every_figure_of_each_size() -> None:
    names = [comparison.name for comparison in trie(0, (300, 500))]
    assert len(names) == len(set(names)) == 2 * 14
    assert all(comparison.ours >= 0 for comparison in trie(1, (200,)))
