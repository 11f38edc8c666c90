"""Compatibility of event schemas: FULL_TRANSITIVE, every version readable by every other version's readers.

Rules for the part of JSON Schema that the events use. Producers of this project write no field that their schema does not
know, so a new optional field is compatible although the schemas tolerate unknown fields.
"""

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import permutations
from typing import Any

Schema = Mapping[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_SAME = ("pattern", "format", "const", "uniqueItems", "multipleOf")
_KNOWN = {
    "$schema",
    "$id",
    "title",
    "description",
    "type",
    "properties",
    "required",
    "items",
    "enum",
    "additionalProperties",
    "default",
}


def schema_versions() -> dict[str, dict[int, Schema]]:
    """Every version of every event's schema, by the event's NAME."""
    found: dict[str, dict[int, Schema]] = {}
    for file in resources.files("schemas").joinpath("events").iterdir():
        parts = file.name.split(".")
        if len(parts) == 3 and parts[2] == "json" and parts[1].startswith("v"):
            found.setdefault(parts[0], {})[int(parts[1][1:])] = json.loads(
                file.read_text(encoding="utf-8")
            )
    return found


def incompatibilities(schemas: Mapping[int, Schema]) -> list[str]:
    """What keeps the versions of one event from reading each other's data; empty if nothing does."""
    return [
        f"a reader of v{reader} cannot read what v{writer} writes: {problem}"
        for reader, writer in permutations(sorted(schemas), 2)
        for problem in reading_problems(schemas[reader], schemas[writer])
    ]


def reading_problems(reader: Schema, writer: Schema, place: str = "") -> Iterator[str]:
    """Why data valid for `writer` may be invalid for `reader`."""
    where = place or "the document"
    for schema in (reader, writer):
        unknown = schema.keys() - _KNOWN - set(_LOWER) - set(_UPPER) - set(_SAME)
        if unknown:
            yield f"{where} uses {', '.join(sorted(unknown))}, which this check does not know; extend it first"
    extra = _types(writer) - _types(reader)
    if extra:
        yield f"{where} may be {', '.join(sorted(extra))}"
    yield from _constraints(reader, writer, where)
    for name in sorted(set(reader.get("required", ())) - set(writer.get("required", ()))):
        yield f"{where} may lack {name}"
    shared = reader.get("properties", {}).keys() & writer.get("properties", {}).keys()
    for name in sorted(shared):
        yield from reading_problems(
            reader["properties"][name], writer["properties"][name], f"{place}/{name}"
        )
    if reader.get("additionalProperties") is False:
        for name in sorted(
            writer.get("properties", {}).keys() - reader.get("properties", {}).keys()
        ):
            yield f"{where} may have {name}"
    if "items" in reader:
        yield from reading_problems(reader["items"], writer.get("items", {}), f"{place}[]")


def _types(schema: Schema) -> set[str]:
    found = schema.get("type", ["array", "boolean", "null", "number", "object", "string"])
    names = {found} if isinstance(found, str) else set(found)
    return names | {"integer"} if "number" in names else names


def _constraints(reader: Schema, writer: Schema, where: str) -> Iterator[str]:
    for name in _LOWER:
        if name in reader and not (name in writer and writer[name] >= reader[name]):
            yield f"{where} has {name} {writer.get(name, 'none')}, below {reader[name]}"
    for name in _UPPER:
        if name in reader and not (name in writer and writer[name] <= reader[name]):
            yield f"{where} has {name} {writer.get(name, 'none')}, above {reader[name]}"
    for name in _SAME:
        if name in reader and reader[name] != writer.get(name):
            yield f"{where} has {name} {writer.get(name, 'none')}, not {reader[name]}"
    if "enum" in reader and not set(writer.get("enum", [object()])) <= set(reader["enum"]):
        yield f"{where} may be outside {reader['enum']}"
