"""Known items: cohorts keep their order, and the ranks of a cohort make its recall."""

import pytest

from model.retrieval.recall import wilson
from ops.jobs.known_items import KnownItemQuery, positions_by_cohort
from ops.jobs.recall_probe import cohort_recall


def test_positions_of_a_cohort_point_into_all_queries() -> None:
    cohorts = ("day", "trained", "day", "hour")
    queries = [KnownItemQuery("text", key, cohort) for key, cohort in enumerate(cohorts)]
    assert positions_by_cohort(queries) == {"day": [0, 2], "trained": [1], "hour": [3]}
    assert positions_by_cohort([]) == {}


def test_recall_of_a_cohort_counts_ranks_up_to_each_cutoff() -> None:
    recall = cohort_recall([1, 4, 10, None], [1, 1, 1, 2])
    assert recall.queries == 4
    assert recall.ours == {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75}
    assert recall.exact == {"R@1": 0.75, "R@5": 1.0, "R@10": 1.0}
    assert recall.interval == pytest.approx(wilson(3, 4))
