"""The query line: who waits, who is refused, and who frees a place."""

import threading

import pytest

from workers.query.pending import PendingQuery
from workers.query.query_line import (
    BUDGET_S,
    MOST_WAITING,
    START_LIMIT,
    BatchPace,
    OverloadedError,
    QueryLine,
    waiting_limit,
)


def query(text: str = "a text") -> PendingQuery:
    return PendingQuery(text, 10, "fused", None)


def filled(line: QueryLine, count: int) -> list[PendingQuery]:
    queries = [query(f"{number}") for number in range(count)]
    for pending in queries:
        line.join(pending)
    return queries


def test_queries_are_taken_in_the_order_in_which_they_came_and_no_more_than_wanted() -> None:
    line = QueryLine(10)
    queries = filled(line, 5)
    assert line.take(3) == queries[:3]
    assert line.take(3) == queries[3:]
    assert line.take(3, wait=False) == []


def test_beyond_the_limit_a_query_is_refused_and_told_when_to_come_again() -> None:
    line = QueryLine(2)
    filled(line, 2)
    assert line.is_full
    with pytest.raises(OverloadedError, match="2 queries wait already") as refusal:
        line.join(query())
    assert refusal.value.retry_after_s >= 1


def test_a_client_that_leaves_frees_its_place_and_its_query_is_not_decoded() -> None:
    line = QueryLine(2)
    first, second = filled(line, 2)
    line.leave(first)
    assert not first.claim()
    third = query()
    line.join(third)
    assert line.take(10) == [second, third]
    line.leave(second)
    assert second.answer.cancelled()


def test_waking_ends_the_wait_without_a_query() -> None:
    line = QueryLine()
    taken: list[list[PendingQuery]] = []
    thread = threading.Thread(target=lambda: taken.append(line.take(5)))
    thread.start()
    line.wake()
    thread.join(10)
    assert taken == [[]]


@pytest.mark.parametrize(
    ("queries", "seconds"), [(1, 0.01), (16, 0.06), (16, 0.3), (4, 0.02), (16, 0.6), (1, 0.2)]
)
def test_whoever_may_wait_begins_within_the_budget(queries: int, seconds: float) -> None:
    limit = waiting_limit([BatchPace(queries, seconds)] * 5)
    # The batch under way, and all that wait before the last one.
    assert seconds + limit * seconds / queries <= BUDGET_S + seconds / queries


def test_the_limit_is_bounded_and_never_zero_and_one_slow_batch_does_not_move_it() -> None:
    assert waiting_limit([]) == START_LIMIT
    assert waiting_limit([BatchPace(16, 1e-9)]) == MOST_WAITING
    assert waiting_limit([BatchPace(1, 30.0)]) == 1
    quick = BatchPace(16, 0.06)
    assert waiting_limit([quick, quick, BatchPace(1, 5.0)]) == waiting_limit([quick])


def test_neither_a_lucky_batch_nor_half_empty_ones_decide_how_many_may_wait() -> None:
    usual, lucky, single = BatchPace(16, 0.16), BatchPace(16, 0.05), BatchPace(1, 0.03)
    assert waiting_limit([usual, usual, usual, lucky]) == waiting_limit([usual])
    assert waiting_limit([single] * 8 + [usual]) == waiting_limit([usual])


def test_the_line_follows_the_measured_pace_unless_its_limit_is_fixed() -> None:
    following, fixed = QueryLine(), QueryLine(7)
    for _ in range(5):
        following.record_pace(1, 0.09)
        fixed.record_pace(1, 0.09)
    assert following.limit == 5
    assert fixed.limit == 7
