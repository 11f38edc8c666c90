"""The trie against a plain set of tuples, under random inserts and deletes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.retrieval import shards
from model.retrieval.shards import Shards
from model.retrieval.trie import ALTERNATE, Trie
from schemas.identifiers import IdentifierShape
from schemas.records import IntArray

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
    assert sorted(zip(*(part.tolist() for part in trie.every()), strict=True)) == sorted(
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


SLOTS = st.integers(0, 12)
LEAVES = st.integers(0, SHAPE.leaves - 1)

# Images to insert where their slot is free, with leaves best first; slots to delete.
STEPS = st.lists(
    st.tuples(
        st.dictionaries(SLOTS, st.lists(LEAVES, min_size=1, max_size=4, unique=True), max_size=8),
        st.lists(SLOTS, max_size=6),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1, 3, 32]), st.sampled_from([1, 2, 8192]))
def test_slots_that_are_used_again_are_those_of_their_new_images(
    steps: list[tuple[dict[int, list[int]], list[int]]], tail: int, most_shards: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Small tails merge at once, and few shards have several leaves each.
        patch.setattr(shards, "_TAIL", tail)
        patch.setattr(shards, "_MOST_SHARDS", most_shards)
        trie, reference = Trie(SHAPE), set[Entry]()
        number = 0
        for images, doomed in steps:
            posted = {slot for _, slot, _ in reference}
            entries: list[Entry] = []
            for slot in images.keys() - posted:
                number += 1
                for rank, leaf in enumerate(images[slot]):
                    entries.append((leaf, slot, number if rank == 0 else ALTERNATE))
            if entries:
                insert(trie, reference, entries)
            # Some of them were not inserted yet, some are deleted twice.
            trie.delete(doomed)
            reference = {entry for entry in reference if entry[1] not in doomed}
            check(trie, reference)
            restarted = Trie(SHAPE)
            if reference:
                insert(restarted, set(), sorted(reference))
            check(restarted, reference)


def test_a_day_of_inserts_and_deletes_leaves_memory_as_it_was() -> None:
    rng = np.random.default_rng(0)
    trie = Trie(SHAPE)

    def post(slots: IntArray) -> None:
        leaves = rng.integers(0, SHAPE.leaves, 3 * len(slots))
        suffixes = np.tile(np.array([5, ALTERNATE, ALTERNATE]), len(slots))
        own = np.repeat(slots, 3)
        trie.insert(leaves, own, np.zeros(len(own), np.float32), suffixes)

    count = 2000
    post(np.arange(count))
    sizes = []
    for _ in range(24 * 8):
        # A sixteenth of all images goes and as many come: in a day twelve times as many as all.
        slots = rng.permutation(count)[: count // 16]
        trie.delete(slots.tolist())
        post(slots)
        assert trie.images == count
        # A shard, here of one leaf, keeps no more deleted postings than a tail has places.
        assert trie.rows <= 3 * count + 32 * SHAPE.leaves
        sizes.append(trie.nbytes)
    assert max(sizes[-20:]) <= 1.1 * max(sizes[:20])
    trie.delete(range(count))
    assert trie.rows <= 32 * SHAPE.leaves


def test_one_insert_merges_the_shards_that_it_fills_only(monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[int] = []
    merge = Shards._merge

    def counted(self: Shards, shard: int, arrived: object) -> None:
        merged.append(shard)
        merge(self, shard, arrived)  # type: ignore[arg-type]

    monkeypatch.setattr(Shards, "_merge", counted)
    shape = IdentifierShape(codes=(8, 8, 8, 8), suffixes=8)
    trie = Trie(shape)
    rng = np.random.default_rng(0)
    for size in (1000, 20_000, 80_000):
        slots = np.arange(trie.images, size)
        trie.insert(
            rng.integers(0, shape.leaves, len(slots)),
            slots,
            np.zeros(len(slots), np.float32),
            np.zeros(len(slots), np.int64),
        )
        merged.clear()
        # More than one tail of the leaf's shard, whatever there is in others.
        count = 40
        new = np.arange(trie.images, trie.images + count)
        leaf = np.full(count, 77)
        trie.insert(leaf, new, np.zeros(count, np.float32), np.zeros(count, np.int64))
        assert merged == [77]


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


def test_weights_beyond_half_precision_stay_finite() -> None:
    trie = Trie(SHAPE)
    trie.insert(
        np.array([4, 5]),
        np.array([0, 0]),
        np.array([0.0, -1e9], np.float32),
        np.array([0, ALTERNATE]),
    )
    assert trie.reached(np.array([5])).weights.tolist() == [-65_504.0]


def test_an_empty_trie_reaches_nothing() -> None:
    trie = Trie(SHAPE)
    trie.insert(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64)))
    assert len(trie.reached(np.arange(SHAPE.leaves)).slots) == 0
