"""Shadowing: which queries are compared, in which steps, and what a comparison says."""

import numpy as np
import pytest

from tests.unit.workers.query.engines import KeysEngine, searcher
from workers.query.shadowing import BACKLOG, ShadowQueue, overlap, recall_of
from workers.repository.shadow_queries import ShadowQuery
from workers.runtime.query_metrics import QueryMetrics


def keys(*numbers: int) -> "np.typing.NDArray[np.int64]":
    return np.array(numbers, np.int64)


def value(metrics: QueryMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


def run_all(shadows: ShadowQueue) -> None:
    while shadows.waiting:
        shadows.step()


def test_the_overlap_is_the_share_of_the_longer_answer() -> None:
    assert overlap(keys(1, 2, 3, 4), keys(3, 4)) == 0.5
    assert overlap(keys(1), keys(1)) == 1.0
    assert overlap(keys(), keys()) == 0.0


def test_the_recall_is_the_share_of_the_exact_answer() -> None:
    assert recall_of(keys(1, 2, 3, 4), keys(4, 9)) == 0.25
    assert recall_of(keys(), keys(1)) == 0.0


def test_a_comparison_measures_both_and_each_ones_own_recall() -> None:
    live, candidate = KeysEngine(1, [1, 2]), KeysEngine(2, [2, 3])
    live.exact, candidate.exact = [1, 2], [3, 4]
    told: list[ShadowQuery] = []
    metrics = QueryMetrics()
    shadows = ShadowQueue(1.0, metrics, told.append)
    shadows.offer("a circle", searcher(live), [searcher(candidate)])
    run_all(shadows)
    (found,) = told
    assert (found.live, found.candidate, found.query) == (1, 2, "a circle")
    assert (found.overlap, found.live_recall, found.candidate_recall) == (0.5, 1.0, 0.5)
    assert value(metrics, "sigma_shadow_queries_total") == 1


def test_the_recall_of_an_empty_generation_is_unknown() -> None:
    told: list[ShadowQuery] = []
    shadows = ShadowQueue(1.0, QueryMetrics(), told.append)
    shadows.offer("a circle", searcher(KeysEngine(1, [1])), [searcher(KeysEngine(2))])
    run_all(shadows)
    assert told[0].candidate_recall is None


@pytest.mark.parametrize(("share", "candidates"), [(0.0, 1), (1.0, 0)])
def test_without_a_share_or_a_candidate_nothing_is_compared(share: float, candidates: int) -> None:
    shadows = ShadowQueue(share, QueryMetrics(), lambda _: None)
    others = [searcher(KeysEngine(2)) for _ in range(candidates)]
    shadows.offer("a circle", searcher(KeysEngine(1)), others)
    assert not shadows.waiting


def test_a_candidate_that_fails_is_counted_and_the_next_comparison_goes_on() -> None:
    broken, sound = KeysEngine(2, [1]), KeysEngine(3, [1])
    broken.error = RuntimeError("the model is broken")
    told: list[ShadowQuery] = []
    metrics = QueryMetrics()
    shadows = ShadowQueue(1.0, metrics, told.append)
    live = searcher(KeysEngine(1, [1]))
    shadows.offer("first", live, [searcher(broken)])
    shadows.offer("second", live, [searcher(sound)])
    run_all(shadows)
    assert value(metrics, "sigma_shadow_failures_total") == 1
    assert [found.query for found in told] == ["second"]


def test_comparisons_beyond_the_backlog_are_dropped_and_counted() -> None:
    metrics = QueryMetrics()
    shadows = ShadowQueue(1.0, metrics, lambda _: None)
    live, candidate = searcher(KeysEngine(1)), searcher(KeysEngine(2))
    for number in range(BACKLOG + 3):
        shadows.offer(str(number), live, [candidate])
    assert value(metrics, "sigma_shadow_dropped_total") == 3
    shadows.clear()
    assert not shadows.waiting
    assert value(metrics, "sigma_shadow_dropped_total") == BACKLOG + 3
