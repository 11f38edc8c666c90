"""Refresh: every new image and a replay of known ones; what stands keeps its suffix."""

import numpy as np

from model.identifiers.instance_suffixes import keep_suffixes
from model.training.replay import refresh_rows
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)


def test_a_refresh_takes_every_new_image_and_as_many_known_ones_as_replay_says() -> None:
    trained = np.ones(100, np.bool_)
    trained[[3, 50, 99]] = False
    rows = refresh_rows(trained, 2.0, 0)
    assert set(rows) >= {3, 50, 99}
    assert (len(rows), len(set(rows))) == (9, 9)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, refresh_rows(trained, 2.0, 0))
    assert not np.array_equal(rows, refresh_rows(trained, 2.0, 1))
    assert refresh_rows(trained, 0.0, 0).tolist() == [3, 50, 99]
    assert len(refresh_rows(trained, 1000.0, 0)) == 100
    assert len(refresh_rows(np.zeros(0, np.bool_), 1.0, 0)) == 0


def test_those_that_stay_keep_their_suffix_and_those_that_come_get_the_lowest_free_one() -> None:
    leaves = np.array([5, 5, 5, 9, 5])
    found = keep_suffixes(leaves, np.array([2, -1, 0, -1, -1]), SHAPE)
    assert found.leaves.tolist() == leaves.tolist()
    assert found.suffixes.tolist() == [2, 1, 0, 0, 3]
    assert found.spilled == 0


def test_a_full_leaf_spills_to_a_relative_and_no_identifier_is_given_twice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        leaves = rng.integers(0, 4, 40)
        suffixes = np.full(40, -1)
        for leaf in range(4):
            rows = np.flatnonzero(leaves == leaf)[:3]
            suffixes[rows] = rng.permutation(SHAPE.suffixes)[: len(rows)]
        found = keep_suffixes(leaves, suffixes, SHAPE)
        stays = suffixes >= 0
        assert (found.leaves[stays] == leaves[stays]).all()
        assert (found.suffixes[stays] == suffixes[stays]).all()
        assert len({*zip(found.leaves.tolist(), found.suffixes.tolist(), strict=True)}) == 40
        assert ((found.suffixes >= 0) & (found.suffixes < SHAPE.suffixes)).all()
        # No more than have to.
        assert (
            found.spilled
            == (found.leaves != leaves).sum()
            == np.maximum(np.bincount(leaves, minlength=4) - SHAPE.suffixes, 0).sum()
        )
