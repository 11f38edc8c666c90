"""The gate's arithmetic: what loss chance explains, and what is refused whatever explains it."""

import pytest

from ops.jobs.gate import ALL, LEAST, WORST_LOSS, _reasons, compare
from ops.jobs.recall_probe import Probe, Rank


def probes(count: int, cohort: str = "day") -> list[Probe]:
    return [Probe("text", key, cohort) for key in range(count)]


def hits(count: int, missed: int, first: int = 0) -> list[Rank]:
    """Ranks of `count` probes, of which `missed` from `first` on are not found."""
    return [None if first <= at < first + missed else 1 for at in range(count)]


def refused(
    asked: list[Probe], live: list[Rank], candidate: list[Rank], **other: float
) -> list[str]:
    return _reasons(
        compare(asked, live, candidate),
        int(other.get("missing", 0)),
        other.get("ratio"),
        [30.0, other.get("scored", 30.0)],
    )


def test_an_equal_candidate_passes_and_a_better_one_too() -> None:
    assert refused(probes(100), hits(100, 10), hits(100, 10)) == []
    assert refused(probes(100), hits(100, 10), hits(100, 0)) == []


def test_what_one_wins_and_the_other_loses_cancels_out_and_widens_what_chance_explains() -> None:
    # Thirty lost, twenty-four won back: 1.645 √54 / 200 is 6 points, so chance explains 3, but never more than the bound.
    found = compare(probes(200), hits(200, 24, first=100), hits(200, 30))
    assert found["day"].loss == pytest.approx(0.03)
    assert found["day"].loss_limit == WORST_LOSS
    assert found[ALL] == found["day"]
    # The same loss without anything won is more than chance explains: 1.645 √6 / 200 is 2 points.
    assert refused(probes(200), hits(200, 0), hits(200, 6)) != []


def test_a_loss_beyond_the_bound_is_refused_however_few_queries_there_are() -> None:
    (reason,) = refused(probes(LEAST), hits(LEAST, 0), hits(LEAST, 2))
    assert "R@10 of day falls from 100.0% to 90.0% in 20 queries" in reason


def test_a_cohort_too_small_to_judge_counts_in_the_whole_only() -> None:
    asked = probes(400) + probes(3, "hour")
    assert refused(asked, hits(403, 0), hits(403, 1, first=400)) == []
    (reason,) = refused(probes(3, "hour"), hits(3, 0), hits(3, 1))
    assert reason.startswith("R@10 of all falls")


def test_one_cohort_may_not_pay_for_another() -> None:
    asked = probes(300, "trained") + probes(40, "day")
    (reason,) = refused(asked, hits(340, 5), hits(340, 4, first=300))
    assert "R@10 of day" in reason


def test_missing_images_slow_queries_and_crowded_leaves_are_refused_too() -> None:
    same = probes(50), hits(50, 0), hits(50, 0)
    assert refused(*same, missing=2)[0].startswith("2 images of the live generation are missing")
    assert refused(*same, ratio=1.6)[0].startswith("a query takes 1.60 times as long")
    assert refused(*same, ratio=1.4) == []
    assert refused(*same, scored=200.0)[0].startswith(
        "a query scores 200 images where it scored 30"
    )
    assert refused([], [], [])[0].startswith("no image has a caption")
