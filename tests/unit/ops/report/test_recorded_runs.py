"""What reports read of job runs: unusable rows are left out, cohorts are pooled, codes counted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from model.retrieval.recall import wilson
from ops.report.recorded_runs import (
    drift_check,
    drift_checks,
    perplexity,
    pooled_recall,
    probe_run,
    probe_runs,
    recall_interval,
)
from schemas.job_results import CodeShares, CohortRecall, LeafLoads
from workers.repository.job_runs import JobRun

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "queries": 40,
    "ours": {"R@1": 0.5, "R@5": 0.8, "R@10": 0.9},
    "exact_dense": {"R@1": 0.6, "R@5": 0.9, "R@10": 1.0},
}


def ran(figures: dict[str, Any], job: str = "recall-probe") -> JobRun:
    return JobRun(
        job=job,
        run_window=1,
        attempt=1,
        outcome="done",
        figures=figures,
        started_at=BEGIN,
        ended_at=BEGIN + timedelta(hours=1),
    )


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"queries": 0, "why": "no generation is live"},
        {"generation": 1, "cohorts": {}},
        {"generation": 1, "cohorts": []},
        {"generation": "1", "cohorts": {"hour": GOOD}},
        {
            "generation": 1,
            "cohorts": {"hour": None, "day": {"queries": 3}, "week": GOOD | {"queries": 0}},
        },
        {"generation": 1, "cohorts": {"hour": GOOD | {"ours": {"R@1": "high"}}}},
        {"generation": True, "cohorts": {"hour": GOOD}},
    ],
)
def test_a_run_that_cannot_be_understood_is_left_out_and_never_a_crash(
    figures: dict[str, Any],
) -> None:
    assert probe_run(ran(figures)) is None
    assert drift_check(ran(figures)) is None
    usable = ran({"generation": 1, "cohorts": {"hour": GOOD}})
    assert len(probe_runs([ran(figures), usable])) == 1
    assert drift_checks([ran(figures), usable]) == []


def test_a_probe_run_keeps_what_can_be_read_and_writes_it_as_it_was_recorded() -> None:
    cohorts = {"trained": GOOD, "hour": GOOD, "day": {"queries": -1}, "new": GOOD}
    probe = probe_run(ran({"generation": 3, "cohorts": cohorts}))
    assert probe is not None
    document = probe.to_dict()
    low, high = wilson(36, 40)
    expected = GOOD | {"ours_R@10_95%": [round(low, 4), round(high, 4)]}
    assert document["at"] == BEGIN.isoformat()
    assert (document["generation"], document["queries"]) == (3, 80)
    assert document["cohorts"] == {"hour": expected, "trained": expected}
    assert list(probe.result.cohorts) == ["hour", "trained"]


def test_a_drift_check_reads_numbers_and_leaves_out_everything_else() -> None:
    good = {
        "name": "id1",
        "effect": 0.3,
        "effect_limit": 0.2,
        "p": None,
        "p_limit": 0.01,
        "alarm": True,
    }
    figures = {
        "generation": 2,
        "images": 10,
        "monitors": [
            good,
            good | {"effect": None},
            "id2",
            good | {"name": "id3", "effect": float("nan")},
        ],
        "histograms": {
            "id1": {"then": [1, 3], "now": [2, 2]},
            "id2": {"then": [1], "now": [1, 2]},
            "id3": None,
            "id4": {"then": [0], "now": [0]},
        },
        "leaf": {"gini": 0.5, "p99": "many"},
    }
    check = drift_check(ran(figures, "drift-report"))
    assert check is not None
    assert check.to_dict() == {
        "at": BEGIN.isoformat(),
        "generation": 2,
        "images": 10,
        "monitors": [good],
        "leaf": {"gini": 0.5},
        "suffix_pressure": None,
    }
    assert check.result.histograms == {"id1": CodeShares((0.25, 0.75), (0.5, 0.5))}
    assert (check.result.leaf, check.result.suffix_pressure) == (LeafLoads(gini=0.5), None)
    assert check.result.histograms["id1"].moved == pytest.approx(0.25)


def test_cohorts_are_pooled_by_their_queries() -> None:
    small = CohortRecall(
        10, {"R@1": 0.1, "R@5": 0.5, "R@10": 1.0}, {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0}
    )
    large = CohortRecall(
        30, {"R@1": 0.5, "R@5": 0.5, "R@10": 0.6}, {"R@1": 0.0, "R@5": 1.0, "R@10": 1.0}
    )
    pooled = pooled_recall([small, large])
    assert pooled is not None
    assert pooled.queries == 40
    assert pooled.ours["R@10"] == pytest.approx(0.7)
    assert pooled.exact["R@1"] == pytest.approx(0.25)
    assert recall_interval(pooled) == wilson(28, 40)
    assert pooled_recall([]) is None


def test_codes_in_use_are_all_when_equally_frequent_and_one_when_alone() -> None:
    assert perplexity((0.25,) * 4) == pytest.approx(4)
    assert perplexity((0.0, 1.0)) == pytest.approx(1)
