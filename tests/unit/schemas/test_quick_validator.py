"""The quick validator: what it calls valid is valid, so nothing passes that the schema forbids."""

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.event_schemas import quick_validator, validator
from schemas.events import EVENTS

ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    1.0,
    1.5,
    2**31,
    float("nan"),
    "",
    "x",
    "\x00",
    "a\n",
    [],
    ["\x00"],
    [1, 2],
    {},
    "f" * 64,
    10**400,
    {"of": None, "to": "x"},
    {"of": "\x00"},
    {"of": ["a", 1]},
    {"of": {}},
    {"of": 2**60},
    {"of": "x" * 1025},
    {"of": ["x"] * 65},
    {"of": -1.5, "2": "x"},
    {str(number): 1 for number in range(33)},
)


def documents(schema: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """A document that is mostly right."""
    good: dict[str, Any] = {
        "object": {"year": 2026, "of": "x", "tags": ["a"], "is": True},
        "string": "2026-11-25T12:00:00+00:00",
        "integer": 3,
        "number": 0.5,
        "array": ["a", "b"],
    }
    document: dict[str, Any] = {}
    for name, member in schema["properties"].items():
        value = good[member["type"]]
        if member["type"] == "array":
            value = [good[member["items"]["type"]]] * max(5, member.get("minItems", 0))
        pattern = member.get("pattern", "")
        document[name] = value
        if "0-9a-f" in pattern:
            document[name] = "a" * 64
        elif "a-z-" in pattern:
            document[name] = "a-word"
    for _ in range(chance.choice((0, 0, 1, 2))):
        name = chance.choice([*document, "unknown"])
        if chance.random() < 0.3:
            document.pop(name, None)
        else:
            document[name] = chance.choice(ODD)
    return document


@pytest.mark.parametrize(
    ("name", "version"), sorted({(event.NAME, event.SCHEMA) for event in EVENTS.values()})
)
def test_the_quick_validator_agrees_with_the_schema(name: str, version: int) -> None:
    slow, quick = validator(name, version), quick_validator(name, version)
    assert isinstance(slow.schema, dict)
    chance = random.Random(name)
    verdicts = set()
    for _ in range(300):
        document = documents(slow.schema, chance)
        valid = slow.is_valid(document)
        # A quick no is looked at again (NaN is one), a quick yes is final.
        assert valid or not quick.is_valid(document), json.dumps(document)
        verdicts.add((valid, quick.is_valid(document)))
    assert {(True, True), (False, False)} <= verdicts
    assert not any(quick.is_valid(odd) and not slow.is_valid(odd) for odd in ODD)
