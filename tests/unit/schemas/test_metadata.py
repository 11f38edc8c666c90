"""Metadata: what passes has one form, and what does not is told by field and by rule."""

import json
from typing import Any

import pytest

from schemas.errors import RejectInputError, UsageError
from schemas.events import ARRIVED, ImageArrived, decode
from schemas.metadata import canonical, checked_metadata, microseconds


def test_values_are_brought_into_one_form() -> None:
    given = {
        "year": 2026.0,
        "share": 0.25,
        "by": "ü 绘",
        "sold": False,
        "at": "2026-01-31T12:00:00.5+02:00",
        "tags": ["b", "a", "b"],
        "none": None,
        "empty": [],
    }
    metadata = checked_metadata(given)
    assert metadata == {
        "year": 2026,
        "share": 0.25,
        "by": "ü 绘",
        "sold": False,
        "at": "2026-01-31T12:00:00.5+02:00",
        "tags": ("a", "b"),
    }
    assert type(metadata["year"]) is int
    assert canonical(metadata) == canonical(dict(reversed(metadata.items())))
    assert canonical({"a": True}) != canonical({"a": 1})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "metadata must be an object of fields and values, got"),
        ({"a b": 1}, "a field of metadata must have a name of 1 to 64 letters"),
        ({"a\n": 1}, "got 'a\\\\n'"),
        ({"": 1}, "must have a name"),
        ({"a": {"b": 1}}, "field a must be a text, a number, true, false or a list of texts"),
        ({"a": [1]}, "field a must be a list of texts, got 1 in it"),
        ({"a": 2**53 + 1}, "field a must be a number between"),
        ({"a": 10**5000}, "got a larger one"),
        ({"a": float("inf")}, "got inf"),
        ({"a": "x" * 1025}, "field a must have at most 1,024 characters, got 1,025"),
        ({"a": ["x" * 129]}, "a tag of metadata field a must have at most 128 characters"),
        ({"a": [str(n) for n in range(65)]}, "field a must have at most 64 tags, got 65"),
        ({"a": "x\0"}, "field a must have no NUL"),
        ({"a": ["\ud800"]}, "half of a surrogate pair"),
        ({"a": "2026-01-31T12:00:00"}, "field a: a time must be as in RFC 3339"),
        ({"a": "2026-02-31T12:00:00Z"}, "a time must be as in RFC 3339"),
        ({f"a{n}": n for n in range(33)}, "at most 32 fields, got 33"),
        ({f"a{n}": "x" * 1000 for n in range(5)}, "at most 4,096 bytes of JSON"),
    ],
)
def test_what_is_wrong_is_told_by_field(metadata: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked_metadata(metadata)


def test_times_are_moments_whatever_their_zone() -> None:
    assert microseconds("1970-01-01T00:00:00.000001Z") == 1
    assert microseconds("1970-01-01t02:00:00+02:00") == 0
    assert microseconds("0001-01-01T00:00:00+14:00") is not None
    assert microseconds("9999-12-31T23:59:59.999999999-14:00") is not None
    assert microseconds("2026-01-31") is None
    assert microseconds("soon") is None


def test_an_arrival_whose_metadata_is_wrong_is_refused_with_the_rule() -> None:
    event = {"image_id": "a", "uri": "file:///a", "metadata": {"year": "2026-01-31T12:00"}}
    with pytest.raises(RejectInputError, match="metadata field year: a time must be") as refused:
        decode(ARRIVED, json.dumps(event).encode())
    assert refused.value.code == "bad-event"


def test_numbers_that_are_no_json_count_as_absent_as_in_other_fields() -> None:
    event = b'{"image_id": "a", "uri": "file:///a", "metadata": {"x": NaN, "y": 1}}'
    record = decode(ARRIVED, event)
    assert isinstance(record, ImageArrived)
    assert record.metadata == {"y": 1}
    with pytest.raises(RejectInputError, match="field x must be a number between"):
        decode(ARRIVED, event.replace(b"NaN", b"1e999"))
