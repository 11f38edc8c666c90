"""Event schemas: published versions never change, and all can read each other's events."""

import hashlib
import json
from importlib import resources
from typing import Any

import pytest

from schemas.compatibility import incompatibilities, reading_problems, schema_versions
from schemas.events import EVENTS

EVENT = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string", "maxLength": 10},
        "size": {"type": "integer", "minimum": 0},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}


def changed(name: str | None = None, **values: Any) -> dict[str, Any]:
    """EVENT with other keywords, at the top or in one of its properties."""
    copy: dict[str, Any] = json.loads(json.dumps(EVENT))
    place = copy if name is None else copy["properties"].setdefault(name, {})
    place.update(values)
    return copy


def test_every_event_has_a_schema_and_every_version_reads_every_other() -> None:
    versions = schema_versions()
    assert set(versions) == {event.NAME for event in EVENTS.values()}
    for name, schemas in versions.items():
        assert 1 in schemas
        assert incompatibilities(schemas) == [], name


def test_a_published_schema_is_never_edited() -> None:
    folder = resources.files("schemas").joinpath("events")
    published = json.loads(folder.joinpath("published.json").read_text(encoding="utf-8"))
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name.endswith(".json") and file.name != "published.json"
    }
    assert hashes == published, (
        "add a new version beside the published one, and its hash to published.json"
    )


@pytest.mark.parametrize(
    "other",
    [
        EVENT,
        changed("new", type="string"),
        changed(description="words"),
        changed("id", description="words"),
    ],
    ids=["same", "optional field", "described", "field described"],
)
def test_compatible_changes_pass(other: dict[str, Any]) -> None:
    assert incompatibilities({1: EVENT, 2: other}) == []


@pytest.mark.parametrize(
    "other",
    [
        changed(required=["id", "size"]),
        changed(required=[]),
        changed("id", type="integer"),
        changed("id", maxLength=9),
        changed("id", maxLength=11),
        changed("size", minimum=1),
        changed("size", type=["integer", "null"]),
        changed("kind", enum=["a", "b", "c"]),
        changed("kind", enum=["a"]),
        changed("tags", items={"type": "integer"}),
        changed("id", pattern="^x"),
        changed("id", format="uri"),
        changed(oneOf=[]),
    ],
)
def test_a_change_that_breaks_one_direction_is_found(other: dict[str, Any]) -> None:
    assert incompatibilities({1: EVENT, 2: other})


def test_closing_the_content_breaks_readers_of_older_versions() -> None:
    closed = changed(additionalProperties=False)
    assert list(reading_problems(closed, changed("new", type="string")))
    assert not list(reading_problems(closed, EVENT))


def test_a_third_version_is_compared_with_the_first_too() -> None:
    two = changed("new", type="string")
    three = changed("new", type="integer")
    assert incompatibilities({1: EVENT, 2: two}) == []
    assert incompatibilities({1: EVENT, 2: two, 3: three})
