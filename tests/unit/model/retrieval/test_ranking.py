"""Ranking inside leaves, and recall with its interval."""

import numpy as np
import pytest

from model.network.querybank import Querybank
from model.retrieval.hubness import HubnessBySlot
from model.retrieval.ranking import log_sum_exp, rank
from model.retrieval.recall import recall_at, wilson
from model.retrieval.shards import Reached


def test_the_fused_score_is_its_formula() -> None:
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float16)
    reached = Reached(
        np.array([0, 2, 2, 1]), np.array([0, 0, -1.0, -0.5], np.float32), np.array([0, 0, 1, 1])
    )
    leaf_scores = np.array([-0.1, -2.0], np.float32)
    ranked = rank(
        np.array([0.6, 0.8], np.float32),
        reached,
        leaf_scores,
        embeddings,
        scale=10,
        fusion_weight=0.3,
        count=3,
    )
    wanted = {
        0: 10 * 0.6 + 0.3 * -0.1,
        1: 10 * 0.8 + 0.3 * -2.5,
        2: 10 * 1.0 + 0.3 * float(np.logaddexp(-0.1, -3.0)),
    }
    assert ranked.slots.tolist() == sorted(wanted, key=lambda slot: -wanted[slot])
    assert ranked.scores.tolist() == pytest.approx(sorted(wanted.values(), reverse=True), abs=0.01)
    assert ranked.candidates == 3


def test_images_near_to_any_text_lose_in_the_ranking() -> None:
    embeddings = np.array([[1, 0], [0.8, 0.6]], np.float16)
    reached = Reached(np.array([0, 1]), np.zeros(2, np.float32), np.zeros(2, np.int64))
    query, scores = np.array([1, 0], np.float32), np.zeros(1, np.float32)
    bank = Querybank(np.array([[1, 0]], np.float32), temperature=0.5, weight=0.75)
    plain = rank(query, reached, scores, embeddings, 10, 1, 2)
    ranked = rank(query, reached, scores, embeddings, 10, 1, 2, HubnessBySlot(bank, 10))
    assert plain.slots.tolist() == [0, 1]
    assert ranked.slots.tolist() == [0, 1]
    # What the only text of the bank says is three quarters of what the query says.
    assert ranked.scores.tolist() == pytest.approx([2.5, 2.0], abs=0.01)
    assert ranked.cosines.tolist() == plain.cosines.tolist()
    nothing = Reached(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    bank = Querybank(np.array([[1, 0]], np.float32), temperature=0.5, weight=2.0)
    turned = rank(query, reached, scores, embeddings, 10, 1, 2, HubnessBySlot(bank, 10))
    assert turned.slots.tolist() == [1, 0]
    assert not len(
        rank(query, nothing, scores, embeddings, 10, 1, 2, HubnessBySlot(bank, 10)).slots
    )


def test_ties_go_to_the_older_image_and_nothing_reached_gives_nothing() -> None:
    embeddings = np.ones((3, 2), np.float16)
    reached = Reached(np.array([2, 0, 1]), np.zeros(3, np.float32), np.zeros(3, np.int64))
    query, scores = np.ones(2, np.float32), np.zeros(1, np.float32)
    assert rank(query, reached, scores, embeddings, 1, 1, 2).slots.tolist() == [0, 1]
    nothing = Reached(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    assert rank(query, nothing, scores, embeddings, 1, 1, 2).candidates == 0


def test_log_sum_exp_survives_very_small_probabilities() -> None:
    sums = log_sum_exp(np.array([-1000.0, -1000.0, 3.0]), np.array([0, 0, 1]), 2)
    assert sums.tolist() == pytest.approx([-1000 + np.log(2), 3.0], abs=1e-3)


def test_recall_counts_images_found_within_k() -> None:
    assert recall_at([1, 3, None, 11], (1, 5, 10, 20)) == {
        "R@1": 0.25,
        "R@5": 0.5,
        "R@10": 0.5,
        "R@20": 0.75,
    }
    assert recall_at([], (1,)) == {"R@1": 0.0}


def test_the_interval_has_its_published_values() -> None:
    low, high = wilson(45, 50)
    assert (low, high) == pytest.approx((0.786, 0.957), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
