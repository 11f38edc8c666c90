"""Replay: a refresh takes every new image and some known ones; stored images keep their suffix."""

import numpy as np

from model.identifiers.instance_suffixes import keep_suffixes
from model.training.replay import refresh_rows
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)

NONE = -1
"""The image has no suffix yet."""


def test_a_refresh_takes_every_new_image_and_as_many_known_ones_as_replay_says() -> None:
    new = {3, 50, 99}
    trained = np.ones(100, np.bool_)
    trained[list(new)] = False
    rows = refresh_rows(trained, 2.0, 0)
    assert set(rows) >= new
    assert (len(rows), len(set(rows))) == (9, 9)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, refresh_rows(trained, 2.0, 0))
    assert not np.array_equal(rows, refresh_rows(trained, 2.0, 1))
    assert refresh_rows(trained, 0.0, 0).tolist() == [3, 50, 99]
    assert len(refresh_rows(trained, 1000.0, 0)) == 100
    assert len(refresh_rows(np.zeros(0, np.bool_), 1.0, 0)) == 0


def test_known_images_keep_their_suffix_and_new_ones_get_the_lowest_free_one() -> None:
    leaves = np.array([5, 5, 5, 9, 5])
    kept = keep_suffixes(leaves, np.array([2, NONE, 0, NONE, NONE]), SHAPE)
    assert kept.leaves.tolist() == leaves.tolist()
    assert kept.suffixes.tolist() == [2, 1, 0, 0, 3]
    assert kept.spilled == 0


def test_a_full_leaf_spills_to_a_relative_and_no_identifier_is_given_twice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        leaves = rng.integers(0, 4, 40)
        suffixes = np.full(40, NONE)
        for leaf in range(4):
            rows = np.flatnonzero(leaves == leaf)[:3]
            suffixes[rows] = rng.permutation(SHAPE.suffixes)[: len(rows)]
        kept = keep_suffixes(leaves, suffixes, SHAPE)
        known = suffixes >= 0
        assert (kept.leaves[known] == leaves[known]).all()
        assert (kept.suffixes[known] == suffixes[known]).all()
        identifiers = set(zip(kept.leaves.tolist(), kept.suffixes.tolist(), strict=True))
        assert len(identifiers) == 40
        assert ((kept.suffixes >= 0) & (kept.suffixes < SHAPE.suffixes)).all()
        # No more spill than have to.
        must_spill = np.maximum(np.bincount(leaves, minlength=4) - SHAPE.suffixes, 0).sum()
        assert kept.spilled == (kept.leaves != leaves).sum() == must_spill
