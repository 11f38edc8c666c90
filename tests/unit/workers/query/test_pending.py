"""Pending queries: which generation answers each, and which are decoded together."""

import pytest

from workers.query.pending import PendingQuery, group_queries
from workers.query.searcher import AnsweredQuery, Mode


def query(
    text: str, generation: int | None = None, *, mode: Mode = "fused", count: int = 10
) -> PendingQuery:
    return PendingQuery(text, count, mode, generation)


def texts(queries: list[PendingQuery]) -> list[str]:
    return [pending.text for pending in queries]


def test_queries_without_a_generation_are_answered_by_the_live_one() -> None:
    grouped = group_queries([query("a"), query("b")], 2, {1, 2})
    assert [(group.generation, texts(group.queries)) for group in grouped.groups] == [
        (2, ["a", "b"])
    ]


def test_queries_that_name_the_live_generation_join_those_that_name_none() -> None:
    (group,) = group_queries([query("a"), query("b", 2)], 2, {2}).groups
    assert texts(group.queries) == ["a", "b"]


def test_generations_and_modes_are_not_mixed_and_keep_the_order_of_arrival() -> None:
    queries = [
        query("a", 1),
        query("b"),
        query("c", mode="paper"),
        query("d", 1),
        query("e"),
    ]
    grouped = group_queries(queries, 2, {1, 2})
    assert [(group.generation, group.mode, texts(group.queries)) for group in grouped.groups] == [
        (1, "fused", ["a", "d"]),
        (2, "fused", ["b", "e"]),
        (2, "paper", ["c"]),
    ]


def test_queries_of_another_least_relevance_are_a_group_of_their_own() -> None:
    strict = [PendingQuery(text, 10, "fused", None, least=0.5) for text in "bc"]
    groups = group_queries([query("a"), *strict, query("d")], 1, {1}).groups
    assert [(group.least, texts(group.queries)) for group in groups] == [
        (None, ["a", "d"]),
        (0.5, ["b", "c"]),
    ]


def test_a_generation_that_is_not_loaded_is_named_and_delays_no_other_query() -> None:
    grouped = group_queries([query("a", 7), query("b")], 2, {2})
    assert texts(grouped.unserved) == ["a"]
    assert [texts(group.queries) for group in grouped.groups] == [["b"]]


def test_without_a_live_generation_only_queries_that_name_a_loaded_one_are_answered() -> None:
    grouped = group_queries([query("a"), query("b", 1)], None, {1})
    assert texts(grouped.unserved) == ["a"]
    assert [group.generation for group in grouped.groups] == [1]


def test_a_group_fetches_as_many_images_as_its_most_demanding_query() -> None:
    (group,) = group_queries([query("a", count=3), query("b", count=25)], 1, {1}).groups
    assert group.count == 25


def test_a_query_whose_client_gave_up_cannot_be_claimed() -> None:
    abandoned = query("a")
    abandoned.answer.cancel()
    assert not abandoned.claim()


def test_a_claimed_query_cannot_be_cancelled_so_its_result_can_be_set() -> None:
    claimed = query("a")
    assert claimed.claim()
    assert not claimed.answer.cancel()
    claimed.answer.set_exception(ValueError("the model failed"))
    with pytest.raises(ValueError, match="the model failed"):
        claimed.answer.result(0)


def test_completing_an_abandoned_or_answered_query_disturbs_nobody() -> None:
    answer = AnsweredQuery("a", 1, (), 0)
    abandoned, answered = query("a"), query("b")
    abandoned.answer.cancel()
    answered.resolve(answer)
    for pending in (abandoned, answered):
        pending.resolve(answer)
        pending.fail(ValueError("too late"))
        assert not pending.claim()
    assert answered.answer.result(0) is answer
