"""The plan: what stays, what is learnt, and what is left to the model."""

from pathlib import Path

import numpy as np

from schemas.identifiers import IdentifierShape
from workers.repository.training_data import IndexedImages
from workers.trainer.identifier_plan import (
    IdentifierPlan,
    codes_of,
    plan_full,
    plan_recluster,
    plan_refresh,
)

SHAPE = IdentifierShape(codes=(2, 3, 2, 2), suffixes=8)


def indexed(count: int = 20, trained: int = 12) -> IndexedImages:
    """`trained` images of the parent, then arrivals."""
    keys = np.arange(count) * 3 + 1
    leaves = np.arange(count) % 5
    number = np.arange(count)
    return IndexedImages(keys, leaves, number // 5, number < trained)


def test_in_full_every_image_is_learnt_under_the_codebooks_leaf() -> None:
    plan = plan_full(np.array([4, 9, 2]), np.array([7, 7, 1]), SHAPE)
    assert plan.learnt.all()
    assert plan.trained.all()
    assert plan.identifiers(np.array([2, 4, 9]), SHAPE)[:, 4].tolist() == [0, 0, 1]


def test_a_refresh_learns_new_images_where_they_are() -> None:
    before = indexed()
    plan = plan_refresh(before, before.leaves, SHAPE, replay=0.5, limit=1000, seed=0)
    new = before.image_keys[~before.trained]
    assert set(plan.image_keys) == {*before.image_keys[before.trained], *new}
    assert set(plan.image_keys[plan.learnt]) >= set(new)
    assert plan.learnt.sum() == len(new) + round(0.5 * len(new))
    at = np.searchsorted(before.image_keys, plan.image_keys)
    np.testing.assert_array_equal(plan.leaves, before.leaves[at])
    np.testing.assert_array_equal(plan.suffixes, before.suffixes[at])
    assert not plan.moved.any()


def test_an_image_that_moved_is_learnt_again() -> None:
    before = indexed()
    leaves = before.leaves.copy()
    leaves[0] = 11
    plan = plan_refresh(before, leaves, SHAPE, replay=0.0, limit=1000, seed=0)
    assert plan.learnt[0]
    assert plan.moved.tolist() == [True, *[False] * (len(plan.moved) - 1)]
    clustered = plan_recluster(before, leaves, SHAPE)
    assert len(clustered.image_keys) == len(before.image_keys)
    assert (clustered.leaves[0], clustered.suffixes[0]) == (11, 0)
    assert clustered.trained.tolist() == [False, *before.trained[1:].tolist()]
    assert not clustered.learnt.any()


def test_no_more_is_learnt_than_allowed_and_known_images_keep_their_place_all_the_same() -> None:
    before = indexed(count=40, trained=10)
    plan = plan_refresh(before, before.leaves, SHAPE, replay=1.0, limit=8, seed=0)
    assert plan.learnt.sum() == 8
    assert set(plan.image_keys) > set(before.image_keys[before.trained])
    assert len(plan.image_keys) == 10 + 4


def test_a_plan_survives_its_file_and_loses_what_the_store_lost(tmp_path: Path) -> None:
    before = indexed()
    plan = plan_refresh(before, before.leaves, SHAPE, replay=1.0, limit=1000, seed=0)
    plan.save(tmp_path)
    again = IdentifierPlan.load(tmp_path)
    np.testing.assert_array_equal(again.image_keys, plan.image_keys)
    np.testing.assert_array_equal(again.learnt, plan.learnt)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.npz"]
    wanted = plan.image_keys[plan.learnt]
    left = again.without_missing(wanted, wanted[1:])
    assert set(plan.image_keys) - set(left.image_keys) == {wanted[0]}


def test_codes_and_leaves_are_the_same_thing() -> None:
    leaves = np.arange(SHAPE.leaves)
    assert [tuple(codes) for codes in codes_of(leaves, SHAPE).tolist()] == [
        SHAPE.unpack(int(leaf)) for leaf in leaves
    ]


def test_what_the_shape_has_no_identifier_for_is_left_to_the_model() -> None:
    shape = IdentifierShape((1, 1, 1, 2), 2)
    plan = plan_full(np.arange(6), np.zeros(6, np.int64), shape)
    assert plan.image_keys.tolist() == [0, 1, 2, 3]
    assert plan.learnt.all()
    identifiers = list(zip(plan.leaves.tolist(), plan.suffixes.tolist(), strict=True))
    assert identifiers == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_an_image_beyond_the_shape_is_learnt_once_a_suffix_is_free() -> None:
    shape = IdentifierShape((1, 1, 1, 2), 2)
    before = IndexedImages(
        image_keys=np.arange(5),
        leaves=np.array([0, 0, 0, 1, 0]),
        suffixes=np.array([0, 1, 2, 0, 3]),
        trained=np.array([True, True, False, True, False]),
    )
    plan = plan_refresh(before, before.leaves, shape, replay=0.0, limit=10, seed=0)
    identifiers = list(zip(plan.leaves.tolist(), plan.suffixes.tolist(), strict=True))
    assert identifiers == [(0, 0), (0, 1), (1, 1), (1, 0), (0, 2)]
    assert plan.learnt.tolist() == [False, False, True, False, False]
    assert plan.trained.tolist() == [True, True, True, True, False]
