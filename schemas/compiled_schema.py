"""Quick checks: a JSON Schema as one compiled function, for every event passes it and almost all are right.

It only says whether a document is valid; what is wrong with one that is not, `jsonschema` says. Schemas with a keyword that is not
known here are not compiled.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_TYPES: Mapping[str, Check] = {
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "integer": lambda value: (
        (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_BOUNDS: Mapping[str, Callable[[Any], Check]] = {
    "minimum": lambda bound: lambda value: value >= bound,
    "maximum": lambda bound: lambda value: value <= bound,
    "minLength": lambda bound: lambda value: len(value) >= bound,
    "maxLength": lambda bound: lambda value: len(value) <= bound,
    "minItems": lambda bound: lambda value: len(value) >= bound,
    "maxItems": lambda bound: lambda value: len(value) <= bound,
    "pattern": lambda pattern: _pattern(re.compile(pattern)),
    "items": lambda schema: _each(_compiled(schema)),
    "required": lambda names: lambda value: all(name in value for name in names),
    "properties": lambda properties: _members(
        {name: _compiled(schema) for name, schema in properties.items()}
    ),
}
_SILENT = {"$schema", "title", "description"}


def compile_check(schema: Mapping[str, Any]) -> Check | None:
    """A function that tells whether a document is valid, or None for a schema that says more than is understood here."""
    try:
        return _compiled(schema)
    except _Unknown:
        return None


class _Unknown(Exception):
    """A keyword that is not compiled."""


def _compiled(schema: Mapping[str, Any]) -> Check:
    kind = schema.get("type")
    said = (
        schema.keys()
        - _SILENT
        - {"type"}
        - ({"additionalProperties"} if schema.get("additionalProperties") is True else set())
    )
    # Every keyword is meant for one type of value, so without a type its check would have to ask first.
    if not isinstance(kind, str) or kind not in _TYPES or not said <= _BOUNDS.keys():
        raise _Unknown
    return _both(_TYPES[kind], [_BOUNDS[name](schema[name]) for name in schema if name in said])


def _both(first: Check, others: list[Check]) -> Check:
    return lambda value: first(value) and all(other(value) for other in others)


def _pattern(pattern: re.Pattern[str]) -> Check:
    return lambda value: pattern.search(value) is not None


def _each(item: Check) -> Check:
    return lambda value: all(map(item, value))


def _members(checks: Mapping[str, Check]) -> Check:
    return lambda value: all(
        checks[name](member) for name, member in value.items() if name in checks
    )
