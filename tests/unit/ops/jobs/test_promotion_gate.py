"""The gate's arithmetic: what loss chance explains, and what is refused whatever explains it."""

import pytest

from ops.jobs.known_items import KnownItemQuery, Rank
from ops.jobs.promotion_gate import (
    ALL_COHORTS,
    MAX_LOSS,
    MIN_COHORT_QUERIES,
    GateMeasurements,
    compare_cohorts,
    decoder_recall,
    judged_cohorts,
    refusal_reasons,
)


def queries(count: int, cohort: str = "day") -> list[KnownItemQuery]:
    return [KnownItemQuery("text", key, cohort) for key in range(count)]


def ranks(count: int, missed: int, first: int = 0) -> list[Rank]:
    """Ranks of `count` queries, of which `missed` from `first` on are not found."""
    return [None if first <= at < first + missed else 1 for at in range(count)]


def refused(
    asked: list[KnownItemQuery],
    live: list[Rank],
    candidate: list[Rank],
    *,
    missing: int = 0,
    latency_ratio: float | None = None,
    candidate_candidates: float = 30.0,
    captions: dict[str, float] | None = None,
    decoder: dict[str, float] | None = None,
) -> list[str]:
    return refusal_reasons(
        GateMeasurements(
            compare_cohorts(asked, live, candidate),
            missing,
            latency_ratio,
            30.0,
            candidate_candidates,
            captions,
            decoder,
        )
    )


def test_an_equal_candidate_passes_and_a_better_one_too() -> None:
    assert refused(queries(100), ranks(100, 10), ranks(100, 10)) == []
    assert refused(queries(100), ranks(100, 10), ranks(100, 0)) == []


def test_a_candidate_whose_decoder_has_learnt_nothing_is_refused_though_images_are_found() -> None:
    asked = queries(100), ranks(100, 10), ranks(100, 10)
    assert refused(*asked, decoder={"live": 0.8, "candidate": 0.4}) == []
    (reason,) = refused(*asked, decoder={"live": 0.8, "candidate": 0.39})
    assert "the decoder alone finds 39% where it found 80%" in reason
    # A live one that finds hardly anything by itself is no measure.
    assert refused(*asked, decoder={"live": 0.19, "candidate": 0.0}) == []


def test_few_queries_say_nothing_of_the_decoder() -> None:
    assert decoder_recall(ranks(19, 0), ranks(19, 0)) is None
    assert decoder_recall(ranks(20, 0), ranks(20, 5)) == {"live": 1.0, "candidate": 0.75}


def test_a_candidate_whose_identifiers_no_longer_stand_for_their_captions_is_refused() -> None:
    asked = queries(100), ranks(100, 10), ranks(100, 10)
    assert refused(*asked, captions={"live": 0.95, "candidate": 0.9}) == []
    (reason,) = refused(*asked, captions={"live": 0.95, "candidate": 0.5})
    assert "in 50% where it was 95%, a loss of 15 points is allowed" in reason
    # Near a half both are chance, and so is their difference.
    assert refused(*asked, captions={"live": 0.6, "candidate": 0.4}) == []


def test_what_one_wins_and_the_other_loses_cancels_out_and_widens_what_chance_explains() -> None:
    # Thirty lost, twenty-four won back: 1.645 √54 / 200 is 6 points, so chance explains the loss of
    # 3 points, but never one beyond the bound.
    comparisons = compare_cohorts(queries(200), ranks(200, 24, first=100), ranks(200, 30))
    assert comparisons["day"].loss == pytest.approx(0.03)
    assert comparisons["day"].loss_limit == MAX_LOSS
    assert comparisons[ALL_COHORTS] == comparisons["day"]
    # The same loss without anything won is more than chance explains: 1.645 √6 / 200 is 2 points.
    assert refused(queries(200), ranks(200, 0), ranks(200, 6)) != []


def test_a_loss_beyond_the_bound_is_refused_however_few_queries_there_are() -> None:
    count = MIN_COHORT_QUERIES
    (reason,) = refused(queries(count), ranks(count, 0), ranks(count, 2))
    assert "R@10 of day falls from 100.0% to 90.0% in 20 queries" in reason


def test_a_cohort_too_small_to_judge_counts_in_the_whole_only() -> None:
    asked = queries(400) + queries(3, "hour")
    assert refused(asked, ranks(403, 0), ranks(403, 1, first=400)) == []
    (reason,) = refused(queries(3, "hour"), ranks(3, 0), ranks(3, 1))
    assert reason.startswith("R@10 of all falls")


def test_one_cohort_may_not_pay_for_another() -> None:
    asked = queries(300, "trained") + queries(40, "day")
    (reason,) = refused(asked, ranks(340, 5), ranks(340, 4, first=300))
    assert "R@10 of day" in reason


def test_a_single_cohort_is_judged_once_and_several_are_judged_together_too() -> None:
    def judged(*sizes: tuple[str, int]) -> list[str]:
        asked = [query for cohort, size in sizes for query in queries(size, cohort)]
        hits = ranks(len(asked), 0)
        return list(judged_cohorts(compare_cohorts(asked, hits, hits)))

    assert judged(("day", 30)) == ["day"]
    assert judged(("day", 30), ("hour", 3)) == ["day", ALL_COHORTS]
    assert judged(("day", 30), ("hour", 30)) == ["day", "hour", ALL_COHORTS]
    assert judged(("hour", 3)) == [ALL_COHORTS]
    assert judged() == []


def test_missing_images_slow_queries_and_crowded_leaves_are_refused_too() -> None:
    same = queries(50), ranks(50, 0), ranks(50, 0)
    missing = refused(*same, missing=2)
    assert missing[0].startswith("2 images of the live generation are missing")
    assert refused(*same, latency_ratio=1.6)[0].startswith("a query takes 1.60 times as long")
    assert refused(*same, latency_ratio=1.4) == []
    crowded = refused(*same, candidate_candidates=200.0)
    assert crowded[0].startswith("a query scores 200 images where it scored 30")
    assert refused([], [], [])[0].startswith("no image has a caption")
