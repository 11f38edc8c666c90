"""The trie against a plain set of tuples, under random inserts and deletes."""

import numpy as np
import pytest
import torch

from model.retrieval.trie import ALTERNATE, Trie
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape(codes=(3, 4, 2, 5), suffixes=30_000)
Entry = tuple[int, int, int]


def insert(trie: Trie, reference: set[Entry], entries: list[Entry]) -> None:
    leaves, slots, suffixes = (np.array(column, np.int64) for column in zip(*entries, strict=True))
    trie.insert(leaves, slots, -0.25 * np.arange(len(entries), dtype=np.float32), suffixes)
    reference |= set(entries)


def check(trie: Trie, reference: set[Entry]) -> None:
    for branches, wanted in (
        (trie.branches, {leaf for leaf, _, _ in reference}),
        (trie.primaries, {leaf for leaf, _, s in reference if 0 <= s < SHAPE.suffixes}),
    ):
        assert branches.leaves == len(wanted)
        for level in range(4):
            below = SHAPE.leaves // SHAPE.prefixes(level + 1)
            counts = np.bincount(
                np.array(sorted(wanted), np.int64) // below, minlength=SHAPE.prefixes(level + 1)
            )
            children = branches.children(level, torch.arange(SHAPE.prefixes(level)))
            np.testing.assert_array_equal(children.flatten().numpy(), counts)
    reached = trie.reached(np.arange(SHAPE.leaves))
    assert sorted(zip(reached.source.tolist(), reached.slots.tolist(), strict=True)) == sorted(
        (leaf, slot) for leaf, slot, _ in reference
    )
    assert trie.images == sum(suffix >= 0 for _, _, suffix in reference)
    for leaf in range(SHAPE.leaves):
        assert trie.suffixes(leaf) == {
            suffix: slot
            for own, slot, suffix in reference
            if own == leaf and 0 <= suffix < SHAPE.suffixes
        }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch", [7, 1500])
def test_it_equals_a_set_of_tuples_under_inserts_and_deletes(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    trie, reference = Trie(SHAPE), set[Entry]()
    slot = 0
    for _ in range(6):
        entries: list[Entry] = []
        for _ in range(batch):
            own = rng.permutation(SHAPE.leaves)[: int(rng.integers(1, 4))].tolist()
            entries += [
                # A fifth of the suffixes lie beyond the shape, some where two bytes do not reach.
                (leaf, slot, slot + slot % 5 // 4 * 50_000 if rank == 0 else ALTERNATE)
                for rank, leaf in enumerate(own)
            ]
            slot += 1
        insert(trie, reference, entries)
        doomed = set(rng.integers(0, slot + 3, batch // 2).tolist())
        trie.delete(doomed)
        reference = {entry for entry in reference if entry[1] not in doomed}
        check(trie, reference)
        asked = np.random.default_rng(slot).integers(0, slot, 50).tolist()
        own_leaves, owners = trie.posted(asked)
        assert sorted(zip(own_leaves.tolist(), owners.tolist(), strict=True)) == sorted(
            (leaf, owner) for leaf, owner, _ in reference if owner in asked
        )


def test_deleting_twice_or_something_unknown_changes_nothing() -> None:
    trie, reference = Trie(SHAPE), set[Entry]()
    insert(trie, reference, [(3, 0, 0), (3, 1, 1), (9, 1, ALTERNATE)])
    trie.delete([1, 1, 77])
    trie.delete([1])
    check(trie, {(3, 0, 0)})


def test_a_leaf_whose_last_image_goes_is_no_child_any_more() -> None:
    trie = Trie(SHAPE)
    insert(trie, set(), [(0, 0, 0), (SHAPE.leaves - 1, 1, 0)])
    trie.delete([0])
    assert trie.branches.children(0, torch.tensor([0])).tolist() == [[0, 0, 1]]
    assert trie.branches.below(3, torch.tensor([0])).tolist() == [0]


def test_weights_come_back_as_they_went_in() -> None:
    trie = Trie(SHAPE)
    trie.insert(
        np.array([4, 4]),
        np.array([0, 1]),
        np.array([0.0, -1.5], np.float32),
        np.array([0, ALTERNATE]),
    )
    reached = trie.reached(np.array([4]))
    assert dict(zip(reached.slots.tolist(), reached.weights.tolist(), strict=True)) == {
        0: 0.0,
        1: -1.5,
    }


def test_an_empty_trie_reaches_nothing() -> None:
    trie = Trie(SHAPE)
    trie.insert(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64)))
    assert len(trie.reached(np.arange(SHAPE.leaves)).slots) == 0
