"""What reports read and count: records of any kind, pooling, thinning, switches, and which of two answers is better."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from model.retrieval.recall import wilson
from ops.report.drift_plots import folded
from ops.report.drift_plots import thinned as thinned_readings
from ops.report.examples import Answer, Comparison, Example, pair_of
from ops.report.figures import (
    Histogram,
    Look,
    Probe,
    Reading,
    Recall,
    look_of,
    perplexity,
    pooled,
    probe_of,
)
from ops.report.recall_plots import thinned
from ops.report.timeline import switches
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.generations import Generation
from workers.repository.job_runs import JobRun

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
GOOD: dict[str, Any] = {
    "queries": 40,
    "ours": {"R@1": 0.5, "R@5": 0.8, "R@10": 0.9},
    "exact_dense": {"R@1": 0.6, "R@5": 0.9, "R@10": 1.0},
}


def ran(figures: dict[str, Any], job: str = "recall-probe") -> JobRun:
    return JobRun(
        job=job,
        window=1,
        attempt=1,
        outcome="done",
        figures=figures,
        started_at=BEGIN,
        ended_at=BEGIN + HOUR,
    )


def generation(
    number: int, state: str, live: float | None = None, ended: float | None = None
) -> Generation:
    moments = [None if hours is None else BEGIN + hours * HOUR for hours in (live, ended)]
    shape = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)
    return Generation(number, state, None, None, shape, GenerationConfig(), BEGIN, *moments)


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
def test_what_is_no_probe_is_left_out_and_never_a_crash(figures: dict[str, Any]) -> None:
    assert probe_of(ran(figures)) is None
    assert look_of(ran(figures)) is None


def test_a_probe_keeps_what_can_be_read_and_says_it_again_as_it_was_recorded() -> None:
    found = probe_of(
        ran(
            {
                "generation": 3,
                "cohorts": {"trained": GOOD, "hour": GOOD, "day": {"queries": -1}, "new": GOOD},
            }
        )
    )
    assert found is not None
    assert list(found.cohorts) == ["hour", "trained"]
    low, high = wilson(36, 40)
    assert found.to_dict()["cohorts"]["hour"] == GOOD | {
        "ours_R@10_95%": [round(low, 4), round(high, 4)]
    }


def test_a_look_reads_numbers_and_leaves_out_what_is_none() -> None:
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
    found = look_of(ran(figures, "drift-report"))
    assert found is not None
    assert [one.to_dict() for one in found.readings] == [good]
    assert found.histograms == {"id1": Histogram((0.25, 0.75), (0.5, 0.5))}
    assert (found.leaf, found.suffix_pressure) == ({"gini": 0.5}, None)
    assert found.histograms["id1"].moved == pytest.approx(0.25)


def test_cohorts_pool_by_their_queries() -> None:
    one = Recall(10, {"R@1": 0.1, "R@5": 0.5, "R@10": 1.0}, {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0})
    other = Recall(30, {"R@1": 0.5, "R@5": 0.5, "R@10": 0.6}, {"R@1": 0.0, "R@5": 1.0, "R@10": 1.0})
    found = pooled([one, other])
    assert found is not None
    assert (found.queries, found.ours["R@10"], found.exact["R@1"]) == (
        40,
        pytest.approx(0.7),
        pytest.approx(0.25),
    )
    assert found.interval() == wilson(28, 40)
    assert pooled([]) is None


def test_codes_in_use_are_all_when_equal_and_one_when_alone() -> None:
    assert perplexity((0.25,) * 4) == pytest.approx(4)
    assert perplexity((0.0, 1.0)) == pytest.approx(1)


def test_folding_keeps_the_whole_and_the_order() -> None:
    shares = [number / 5050 for number in range(1, 101)]
    found = folded(shares, 64)
    assert len(found) == 50
    assert sum(found) == pytest.approx(1)
    assert found[0] == pytest.approx(3 / 5050)
    assert folded(shares[:64], 64) == shares[:64]


def test_a_long_line_of_probes_is_thinned_to_means_and_breaks_at_a_switch() -> None:
    cohorts = [Recall(50, {"R@10": share}, {"R@10": 1.0}) for share in (0.8, 0.9)]
    probes = [
        Probe(BEGIN + at * HOUR, 1 if at < 600 else 2, {"hour": cohorts[at % 2]})
        for at in range(1000)
    ]
    lines = thinned(probes, "hour", BEGIN, BEGIN + 1000 * HOUR)
    assert len(lines) == 2
    points = [point for line in lines for point in line]
    assert 60 <= len(points) <= 92
    assert all(point.ours == pytest.approx(0.85, abs=0.01) for point in points)
    assert all(point.low < point.ours < point.high for point in points)
    assert lines[0][-1].at < BEGIN + 600 * HOUR <= lines[1][0].at
    assert thinned(probes, "day", BEGIN, BEGIN + 1000 * HOUR) == []


def test_thinning_the_monitors_loses_no_alarm() -> None:
    calm = Reading("id1", 0.1, 0.2, 0.5, 0.01, alarm=False)
    loud = Reading("id1", 0.3, 0.2, 0.001, 0.01, alarm=True)
    looks = [
        Look(BEGIN + at * HOUR, 1, 100, (loud if at == 777 else calm,), {}, None, {})
        for at in range(2000)
    ]
    (line,) = thinned_readings(looks, "id1", BEGIN, BEGIN + 2000 * HOUR)
    assert len(line) <= 121
    assert [at for at, one in line if one.alarm] == [BEGIN + 777 * HOUR]


def test_an_effect_without_a_limit_is_beyond_it_unless_it_is_nothing() -> None:
    assert Reading("m", 0.1, 0.0, None, None, alarm=False).ratio == float("inf")
    assert Reading("m", 0.0, 0.0, None, None, alarm=False).ratio == 0


def test_a_switch_that_a_rollback_took_from_the_table_is_seen_in_the_records() -> None:
    # Generation 1, then 2, then 1 again: the table knows 1 since hour 20 only.
    table = [generation(1, "live", 20), generation(2, "retired", 10, 20)]
    seen = [(BEGIN + at * HOUR, 1 if at < 10 or at >= 20 else 2) for at in range(30)]
    assert [(one.at, one.generation) for one in switches(table, seen, BEGIN + HOUR)] == [
        (BEGIN + 10 * HOUR, 2),
        (BEGIN + 20 * HOUR, 1),
    ]
    forgotten = [generation(1, "live", 20), generation(2, "failed")]
    assert [(one.at, one.generation) for one in switches(forgotten, seen, BEGIN)] == [
        (BEGIN + 10 * HOUR, 2),
        (BEGIN + 20 * HOUR, 1),
    ]


def test_the_pair_to_compare_is_the_live_generation_and_the_one_that_answered_last() -> None:
    live, older, newer = (
        generation(4, "live", 9),
        generation(3, "retired", 1, 5),
        generation(2, "retired", 5, 9),
    )
    assert pair_of([newer, older, live, generation(5, "shadow")]) == (newer, live)
    assert "first switch" in str(pair_of([live]))
    assert "No generation is live" in str(pair_of([older]))


def test_better_and_worse_are_told_apart_by_reciprocal_rank() -> None:
    def example(name: str, before: int | None, after: int | None) -> Example:
        return Example(name, name, Answer(before, ()), Answer(after, ("x",)))

    found = Comparison(
        1,
        2,
        (
            example("a", 10, 9),
            example("b", None, 1),
            example("c", 3, 3),
            example("d", 1, None),
            example("e", 2, 3),
        ),
    )
    assert [one.query for one in found.better] == ["b", "a"]
    assert [one.query for one in found.worse] == ["d", "e"]
    assert found.chance == 1.0
    assert Comparison(
        1, 2, tuple(example(str(at), None, 1) for at in range(8))
    ).chance == pytest.approx(2 / 2**8)
    assert found.image_ids == {"a", "b", "d", "e", "x"}
    assert found.to_dict()["asked"] == 5
