"""The peers and draws of `sigma bench trie`."""

import numpy as np
import pytest
import torch

from model.retrieval.trie import Trie
from ops.bench.frozen_trie import FrozenTrie
from ops.bench.marisa_peer import MarisaTrie, has_marisa
from ops.bench.trie import trie
from ops.bench.trie_churn import Churn
from schemas.identifiers import IdentifierShape
from schemas.records import IntArray

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


@pytest.mark.skipif(not has_marisa(), reason="marisa-trie comes with the extra bench")
def test_marisa_allows_and_holds_what_the_live_trie_does() -> None:
    rng = np.random.default_rng(0)
    leaves, slots = rng.integers(0, SHAPE.leaves, 60), np.arange(60)
    live, peer = Trie(SHAPE), MarisaTrie(SHAPE, leaves, slots)
    live.insert(leaves, slots, np.zeros(60, np.float32), np.zeros(60, np.int64))
    for level in (2, 3):
        prefixes = leaves // (SHAPE.leaves // SHAPE.prefixes(level))
        expected = live.branches.children(level, torch.from_numpy(prefixes)) > 0
        np.testing.assert_array_equal(peer.children(level, prefixes), expected.numpy())
    for leaf in range(SHAPE.leaves):
        assert sorted(peer.slots(leaf)) == np.flatnonzero(leaves == leaf).tolist()


def test_churn_leaves_every_image_where_its_key_says() -> None:
    leaves = np.random.default_rng(1).integers(0, SHAPE.leaves, 300)
    live = Trie(SHAPE)

    def insert(into: Trie, slots: IntArray) -> None:
        into.insert(leaves[slots], slots, np.zeros(len(slots), np.float32), slots % 8)

    insert(live, np.arange(300))
    churn = Churn(live, 300, insert, seed=0)
    before = churn.image_bytes
    for number in range(1, 4):
        churn.exchange(250)
        keys = np.arange(300 + 250 * number)
        slots = churn.keys.get(keys)
        assert sorted(slots[slots >= 0].tolist()) == list(range(300))
        assert live.images == live.postings == 300
        assert live.rows <= 300 + 32 * SHAPE.leaves
    # Four bytes for slots that do not follow keys, two for a number of a page with few.
    assert churn.image_bytes <= before + 6 + 8 * SHAPE.leaves / 300


def test_the_benchmark_reports_every_figure_of_each_size() -> None:
    names = [comparison.name for comparison in trie(0, (300, 500))]
    assert len(names) == len(set(names)) == 2 * (17 + 3 * has_marisa())
    assert all(comparison.ours >= 0 for comparison in trie(1, (200,)))
