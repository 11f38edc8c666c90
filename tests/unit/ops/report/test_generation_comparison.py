"""Two generations compared: which pair, which answer is better, and what chance says of it."""

from datetime import UTC, datetime, timedelta

import pytest

from ops.report.generation_comparison import (
    ComparedQuery,
    GenerationComparison,
    RankedAnswer,
    pair_to_compare,
)
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.generations import Generation

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def generation(number: int, state: str, ended: float | None = None) -> Generation:
    """A row of the table; `ended` in hours after `BEGIN`."""
    shape = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)
    ended_at = None if ended is None else BEGIN + ended * HOUR
    return Generation(number, state, None, None, shape, GenerationConfig(), BEGIN, BEGIN, ended_at)


def compared(name: str, before: int | None, after: int | None) -> ComparedQuery:
    return ComparedQuery(name, name, RankedAnswer(before, ()), RankedAnswer(after, ("x",)))


def test_the_pair_to_compare_is_the_live_generation_and_the_one_that_answered_last() -> None:
    live = generation(4, "live")
    older = generation(3, "retired", 5)
    newer = generation(2, "retired", 9)
    assert pair_to_compare([newer, older, live, generation(5, "shadow")]) == (newer, live)
    assert "first switch" in str(pair_to_compare([live]))
    assert "No generation is live" in str(pair_to_compare([older]))


def test_better_and_worse_are_told_apart_by_reciprocal_rank() -> None:
    queries = (
        compared("a", 10, 9),
        compared("b", None, 1),
        compared("c", 3, 3),
        compared("d", 1, None),
        compared("e", 2, 3),
    )
    comparison = GenerationComparison(1, 2, queries)
    assert [query.query for query in comparison.better] == ["b", "a"]
    assert [query.query for query in comparison.worse] == ["d", "e"]
    assert comparison.chance == 1.0
    assert comparison.image_ids == {"a", "b", "d", "e", "x"}
    assert comparison.to_dict()["asked"] == 5


def test_a_one_sided_result_is_unlikely_to_be_chance() -> None:
    queries = tuple(compared(str(number), None, 1) for number in range(8))
    assert GenerationComparison(1, 2, queries).chance == pytest.approx(2 / 2**8)
