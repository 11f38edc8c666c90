"""Metadata columns against a plain evaluation of every filter, while images come, change and go."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.retrieval import metadata_columns
from model.retrieval.metadata_columns import MetadataColumns
from schemas.filters import parse_filter
from schemas.metadata import Metadata, checked_metadata

SLOTS = 16
FIELDS = ("a", "b")
NUMBERS = (0, 1, 1.5, -2)
TIMES = ("2026-01-31T12:00:00Z", "2026-01-31T14:00:00+02:00", "2026-01-31T12:00:00.000001Z")
TEXTS = ("x", "y", "ü", *TIMES)

scalars = st.sampled_from((*NUMBERS, True, False, *TEXTS))
values = scalars | st.lists(st.sampled_from(TEXTS), max_size=3)
documents = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=2)
changes = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), documents | st.none()), min_size=8, max_size=40
)
ends = st.sampled_from(NUMBERS) | st.sampled_from(TIMES)


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    field = {"field": draw(st.sampled_from((*FIELDS, "never")))}
    match draw(st.integers(0, 3)):
        case 0:
            return field | {"equals": draw(scalars)}
        case 1:
            return field | {"any": draw(st.lists(scalars, min_size=1, max_size=4))}
        case 2:
            return field | {"exists": draw(st.booleans())}
    kind = draw(st.sampled_from((NUMBERS, TIMES)))
    low = draw(st.sampled_from(("gt", "gte")))
    high = draw(st.sampled_from(("lt", "lte")))
    chosen = draw(st.sampled_from(((low,), (high,), (low, high))))
    return field | {name: draw(st.sampled_from(kind)) for name in chosen}


filters = st.recursive(
    conditions(),
    lambda part: (
        st.builds(lambda parts: {"and": parts}, st.lists(part, min_size=1, max_size=3))
        | st.builds(lambda parts: {"or": parts}, st.lists(part, min_size=1, max_size=3))
        | st.builds(lambda one: {"not": one}, part)
    ),
    max_leaves=6,
)


def verdict(wanted: Mapping[str, Any], metadata: Metadata) -> bool | None:
    """The plain evaluation: True, False, or None where the filter says nothing of the image."""
    if "not" in wanted:
        inner = verdict(wanted["not"], metadata)
        return None if inner is None else not inner
    for name, winner in (("and", False), ("or", True)):
        if name in wanted:
            found = [verdict(part, metadata) for part in wanted[name]]
            if winner in found:
                return winner
            return None if None in found else not winner
    value = metadata.get(wanted["field"])
    if "exists" in wanted:
        return (value is not None) is wanted["exists"]
    if value is None:
        return None
    if "equals" in wanted or "any" in wanted:
        sought = wanted.get("any", [wanted.get("equals")])
        return among(value, sought)
    bounds = {name: wanted[name] for name in wanted if name != "field"}
    return within(value, bounds)


def among(value: Any, sought: list[Any]) -> bool | None:
    own = value if isinstance(value, tuple) else (value,)
    comparable = False
    for mine in own:
        for other in sought:
            kinds = {kind(mine), kind(other)}
            is_tag = isinstance(value, tuple)
            if is_tag and isinstance(other, str):
                comparable = True
                if mine == other:
                    return True
            elif kinds == {"time"}:
                comparable = True
                if moment(mine) == moment(other):
                    return True
            elif len(kinds) == 1 or (kinds == {"text", "time"} and kind(other) == "time"):
                comparable = True
                if mine == other:
                    return True
    return False if comparable else None


def within(value: Any, bounds: Mapping[str, Any]) -> bool | None:
    if kind(value) != kind(next(iter(bounds.values()))) or kind(value) not in ("number", "time"):
        return None
    for name, end in bounds.items():
        mine, other = (moment(value), moment(end)) if kind(value) == "time" else (value, end)
        compared = {
            "gt": mine > other,
            "gte": mine >= other,
            "lt": mine < other,
            "lte": mine <= other,
        }
        if not compared[name]:
            return False
    return True


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "time" if value in TIMES else "text"
    return "tags"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("least_empty", [0, 4096], ids=["compacting", "keeping"])
@settings(max_examples=100, deadline=None)
@given(history=changes, wanted=st.lists(filters, min_size=2, max_size=5))
def test_the_allowed_set_is_that_of_a_plain_evaluation(
    history: list[tuple[int, dict[str, Any] | None]],
    wanted: list[dict[str, Any]],
    least_empty: int,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metadata_columns, "_LEAST_EMPTY", least_empty)
        columns = MetadataColumns()
        plain: dict[int, Metadata] = {}
        for slot, document in history:
            columns.delete(np.array([slot]))
            plain.pop(slot, None)
            if document is not None:
                plain[slot] = checked_metadata(document)
                columns.insert({slot: plain[slot]})
        assert columns.images == len(plain)
        for document in wanted:
            allowed = columns.allowed(parse_filter(document), SLOTS)
            expected = [verdict(document, plain.get(slot, {})) is True for slot in range(SLOTS)]
            assert allowed.tolist() == expected, document


def test_memory_is_given_back_when_images_go() -> None:
    columns = MetadataColumns()
    for begin in range(0, 60_000, 1000):
        slots = range(begin % 3000, begin % 3000 + 1000)
        columns.delete(np.array(slots))
        columns.insert({slot: {f"f{begin}": f"text {begin + slot}", "n": slot} for slot in slots})
    assert columns.images == 3000
    # 3,000 images with two values; a part of the rows may be empty, and arrays grow by doubling.
    assert columns.nbytes < 1_000_000


def test_all_of_a_batch_is_inserted_and_a_known_slot_gets_the_new_metadata() -> None:
    columns = MetadataColumns()
    columns.insert({3: {"a": 1}, 0: {"a": 2, "b": ("x", "y")}})
    columns.insert({3: {"a": 2}, 1: {}})
    assert columns.allowed(parse_filter({"field": "a", "equals": 2}), 4).tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert not columns.allowed(parse_filter({"field": "a", "equals": 1}), 4).any()
