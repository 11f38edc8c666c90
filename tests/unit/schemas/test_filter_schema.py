"""The schema of filters allows what the parser reads, and nothing else."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas.filter_schema import filter_parts, reference
from schemas.filters import FilterError, parse_filter

SCHEMA = Draft202012Validator({"components": {"schemas": filter_parts()}, **reference("Filter")})

TIMES = ("2026-01-31T12:00:00Z", "1999-12-31T23:59:59.123456789+05:30")

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["red", "", "a\0b", "x" * 1024, "x" * 1025, *TIMES]),
    st.sampled_from([0, -1.5, 2**53, -(2**53), 2**53 + 2, True, False, None]),
    st.just([]),
    st.just({}),
)

FIELDS = st.sampled_from(["year", "_a.b-c", "x" * 64, "x" * 65, "1", "a b", "", 3, None])

GOOD_FIELDS = st.sampled_from(["year", "taken"])

CONDITIONS = st.one_of(
    st.fixed_dictionaries({"field": FIELDS, "equals": VALUES}),
    st.fixed_dictionaries({"field": GOOD_FIELDS, "any": st.lists(VALUES, max_size=3) | VALUES}),
    st.fixed_dictionaries({"field": GOOD_FIELDS, "exists": st.booleans() | VALUES}),
    st.fixed_dictionaries(
        {}, optional={"field": GOOD_FIELDS, **dict.fromkeys(("gt", "gte", "lt", "lte"), VALUES)}
    ),
    st.fixed_dictionaries(
        {"field": GOOD_FIELDS}, optional={"gte": st.integers(0, 9), "odd": VALUES}
    ),
    VALUES,
)

FILTERS = st.recursive(
    CONDITIONS,
    lambda parts: st.one_of(
        st.fixed_dictionaries({"not": parts}),
        st.fixed_dictionaries({"and": st.lists(parts, max_size=2) | parts}),
        st.fixed_dictionaries({"or": st.lists(parts, max_size=2)}, optional={"field": FIELDS}),
    ),
    max_leaves=4,
)


def is_read(document: Any) -> bool:
    try:
        parse_filter(document)
    except FilterError:
        return False
    return True


@given(FILTERS)
@settings(max_examples=600, deadline=None)
def test_schema_and_parser_agree(document: Any) -> None:
    assert SCHEMA.is_valid(document) == is_read(document)


def test_a_range_has_two_numbers_or_two_times() -> None:
    number, moment = 3, TIMES[0]
    for low, high, good in (
        (number, number, True),
        (moment, moment, True),
        (number, moment, False),
    ):
        document = {"field": "a", "gte": low, "lt": high}
        assert SCHEMA.is_valid(document) == is_read(document) == good
