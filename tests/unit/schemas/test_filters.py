"""Filters: what is not of the grammar is one sentence that says where and how to correct it."""

from typing import Any

import pytest

from schemas.filters import And, AnyOf, Bound, Exists, FilterError, Not, Range, parse_filter

YEAR = {"field": "year", "gte": 2020}


def test_filters_are_read_into_values_that_compare() -> None:
    wanted = {"and": [YEAR | {"lt": 2026.5}, {"not": {"field": "tags", "any": ["b", "a", "b"]}}]}
    assert parse_filter(wanted) == And(
        (
            Range("year", False, Bound(2020, False), Bound(2026.5, True)),
            Not(AnyOf("tags", texts=("a", "b"))),
        )
    )
    assert parse_filter({"field": "a", "exists": False}) == Not(Exists("a"))


def test_one_and_true_are_two_values() -> None:
    one = parse_filter({"field": "a", "equals": 1})
    assert one != parse_filter({"field": "a", "equals": True})
    assert one == parse_filter({"field": "a", "any": [1.0]})
    assert hash(one) == hash(parse_filter({"field": "a", "any": [1.0]}))


def test_a_time_is_the_moment_that_it_names_to_the_microsecond() -> None:
    late = parse_filter({"field": "at", "gt": "9999-12-31T23:59:59.999999Z"})
    assert isinstance(late, Range)
    assert late.low == Bound(253402300799999999, True)
    assert parse_filter({"field": "at", "lt": "2026-01-31T12:00:00Z"}) == parse_filter(
        {"field": "at", "lt": "2026-01-31T13:00:00+01:00"}
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "filter must be an object such as .*, got \\[\\]"),
        ({}, "filter must have and, or, not, or a field .*, got nothing"),
        ({"filed": "year"}, "got 'filed'"),
        ({"field": "a b", "equals": 1}, "got 'a b'"),
        ({"field": "year"}, "field year, must have one of equals, any and exists.*got nothing"),
        ({"field": "year", "eq": 1}, "field year, must have .*got 'eq'"),
        ({"field": "year", "equals": 1, "gte": 1}, "got 'equals', 'gte'"),
        ({"field": "year", "gt": 1, "gte": 1}, "must have gt or gte, got both"),
        ({"field": "year", "gte": "2020"}, "gte must be a number, or a time .*got '2020'"),
        ({"field": "year", "gte": True}, "gte must be a number"),
        ({"field": "a", "gte": 1, "lt": "2026-01-31T12:00:00Z"}, "two numbers or two times"),
        ({"field": "a", "lt": "2026-01-31T12:00:00"}, "lt: a time must be as in RFC 3339"),
        ({"field": "a", "equals": [1]}, "equals must be a text, a number, a time"),
        ({"field": "a", "equals": None}, "equals must be a text"),
        ({"field": "a", "equals": 10**30}, "equals must be a number between"),
        ({"field": "a", "equals": "\ud800"}, "half of a surrogate pair"),
        ({"field": "a", "any": []}, "any must be a list of 1 to 256 values, got 0"),
        ({"field": "a", "any": [1] * 257}, "got 257 of them"),
        ({"field": "a", "exists": 1}, "exists must be true or false, got 1"),
        ({"and": []}, "filter/and must be a list of filters"),
        ({"and": [YEAR], "or": [YEAR]}, "must have and alone, got 'and', 'or'"),
        ({"or": [YEAR, {"not": {"field": "b"}}]}, "filter/or/1/not, field b, must have"),
        ({"and": [YEAR] * 64}, "at most 64 parts"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(wanted: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_filter(wanted)


def test_filters_inside_of_each_other_are_bounded() -> None:
    wanted: Any = YEAR
    for _ in range(7):
        wanted = {"not": wanted}
    parse_filter(wanted)
    for _ in range(5000):
        wanted = {"not": wanted}
    with pytest.raises(FilterError, match="8 inside of each other"):
        parse_filter(wanted)
