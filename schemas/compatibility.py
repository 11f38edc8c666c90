"""Compatibility of event schemas: every version's readers can read what every other version writes.

This is what schema registries call FULL_TRANSITIVE. The rules cover the part of JSON Schema that
the events use. Producers of this project write no field that their schema does not list, so a new
optional field is compatible although the schemas tolerate unknown fields.
"""

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import permutations
from typing import Any

# A JSON Schema as it was parsed.
JsonSchema = Mapping[str, Any]

# Keywords that must be equal: whether one includes the other cannot be told in general.
_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EXACT = ("pattern", "format", "const", "uniqueItems", "multipleOf", "propertyNames")
_OTHER_KNOWN = (
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
)
_KNOWN = frozenset((*_LOWER_BOUNDS, *_UPPER_BOUNDS, *_EXACT, *_OTHER_KNOWN))

_ANY_TYPE = ("array", "boolean", "null", "number", "object", "string")


def schema_versions() -> dict[str, dict[int, JsonSchema]]:
    """Load every version of every event's schema: by the event's NAME, then by version."""
    versions: dict[str, dict[int, JsonSchema]] = {}
    for file in resources.files("schemas").joinpath("events").iterdir():
        name, _, rest = file.name.partition(".")
        version = rest.removesuffix(".json")
        # published.json lies in the same folder and has no version.
        if version.startswith("v"):
            schema = json.loads(file.read_text(encoding="utf-8"))
            versions.setdefault(name, {})[int(version[1:])] = schema
    return versions


def incompatibilities(schemas: Mapping[int, JsonSchema]) -> list[str]:
    """List what keeps the versions of one event from reading each other's data."""
    problems: list[str] = []
    # Permutations and not combinations: each version must read the other.
    for reader, writer in permutations(sorted(schemas), 2):
        for problem in reading_problems(schemas[reader], schemas[writer]):
            problems.append(f"a reader of v{reader} cannot read what v{writer} writes: {problem}")
    return problems


def reading_problems(reader: JsonSchema, writer: JsonSchema, place: str = "") -> Iterator[str]:
    """Yield why data that is valid for `writer` may be invalid for `reader`.

    `place` is the path of both schemas in the document, such as `/captions[]`.
    """
    where = place or "the document"
    for schema in (reader, writer):
        unknown = schema.keys() - _KNOWN
        if unknown:
            keywords = ", ".join(sorted(unknown))
            yield f"{where} uses {keywords}, which this check does not know; extend it first"
    additional = _types(writer) - _types(reader)
    if additional:
        yield f"{where} may be {', '.join(sorted(additional))}"
    yield from _bound_problems(reader, writer, where)
    for name in sorted(set(reader.get("required", ())) - set(writer.get("required", ()))):
        yield f"{where} may lack {name}"
    yield from _property_problems(reader, writer, place)
    if "items" in reader:
        yield from reading_problems(reader["items"], writer.get("items", {}), f"{place}[]")
    others = reader.get("additionalProperties")
    if isinstance(others, Mapping):
        written = writer.get("additionalProperties", {})
        # True allows any value, as an empty schema does; False allows none.
        if written is not False:
            yield from reading_problems(others, {} if written is True else written, f"{place}/*")


def _property_problems(reader: JsonSchema, writer: JsonSchema, place: str) -> Iterator[str]:
    read = reader.get("properties", {})
    written = writer.get("properties", {})
    for name in sorted(read.keys() & written.keys()):
        yield from reading_problems(read[name], written[name], f"{place}/{name}")
    if reader.get("additionalProperties") is False:
        for name in sorted(written.keys() - read.keys()):
            yield f"{place or 'the document'} may have {name}"


def _types(schema: JsonSchema) -> set[str]:
    declared = schema.get("type", _ANY_TYPE)
    names = {declared} if isinstance(declared, str) else set(declared)
    # Every integer is a number, so whoever reads numbers reads integers.
    return names | {"integer"} if "number" in names else names


def _bound_problems(reader: JsonSchema, writer: JsonSchema, where: str) -> Iterator[str]:
    for name in _LOWER_BOUNDS:
        if name in reader and not (name in writer and writer[name] >= reader[name]):
            yield f"{where} has {name} {writer.get(name, 'none')}, below {reader[name]}"
    for name in _UPPER_BOUNDS:
        if name in reader and not (name in writer and writer[name] <= reader[name]):
            yield f"{where} has {name} {writer.get(name, 'none')}, above {reader[name]}"
    for name in _EXACT:
        if name in reader and reader[name] != writer.get(name):
            yield f"{where} has {name} {writer.get(name, 'none')}, not {reader[name]}"
    if "enum" in reader and not _enum_within(writer, reader["enum"]):
        yield f"{where} may be outside {reader['enum']}"


def _enum_within(writer: JsonSchema, allowed: list[Any]) -> bool:
    # A writer without an enum may write anything.
    return "enum" in writer and set(writer["enum"]) <= set(allowed)
