"""Quick checks: a JSON Schema compiled into one function.

Every event is checked, almost all are valid, and `jsonschema` is slow. The compiled function only
says whether a document is valid; what is wrong with an invalid one is left to `jsonschema`. A
schema with a keyword that is not known here is not compiled.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

# Whether a parsed JSON value is valid.
Check = Callable[[Any], bool]


def compile_check(schema: Mapping[str, Any]) -> Check | None:
    """Compile a schema; None when it has a keyword that is not known here."""
    try:
        return _compile(schema)
    except _UnknownKeywordError:
        return None


class _UnknownKeywordError(Exception):
    """A keyword that is not compiled."""


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_array(value: Any) -> bool:
    return isinstance(value, list)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_integer(value: Any) -> bool:
    if isinstance(value, float):
        # JSON Schema counts 1.0 as an integer.
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # In Python a bool is an int; in JSON it is not a number.
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Mapping[str, Check] = {
    "string": _is_string,
    "array": _is_array,
    "object": _is_object,
    "integer": _is_integer,
    "number": _is_number,
}


def _at_least(bound: float) -> Check:
    return lambda value: value >= bound


def _at_most(bound: float) -> Check:
    return lambda value: value <= bound


def _size_at_least(bound: int) -> Check:
    return lambda value: len(value) >= bound


def _size_at_most(bound: int) -> Check:
    return lambda value: len(value) <= bound


def _contains_match(pattern: str) -> Check:
    search = re.compile(pattern).search
    return lambda value: search(value) is not None


def _each_item(schema: Mapping[str, Any]) -> Check:
    check = _compile(schema)
    return lambda value: all(map(check, value))


def _has_all(names: list[str]) -> Check:
    return lambda value: all(name in value for name in names)


def _each_member(properties: Mapping[str, Mapping[str, Any]]) -> Check:
    checks = {name: _compile(schema) for name, schema in properties.items()}

    def check(value: Mapping[str, Any]) -> bool:
        for name, member in value.items():
            if name in checks and not checks[name](member):
                return False
        return True

    return check


_KEYWORDS: Mapping[str, Callable[[Any], Check]] = {
    "minimum": _at_least,
    "maximum": _at_most,
    "minLength": _size_at_least,
    "maxLength": _size_at_most,
    "minItems": _size_at_least,
    "maxItems": _size_at_most,
    "pattern": _contains_match,
    "items": _each_item,
    "required": _has_all,
    "properties": _each_member,
}
_WITHOUT_EFFECT = frozenset({"$schema", "title", "description"})


def _compile(schema: Mapping[str, Any]) -> Check:
    keywords = [name for name in schema if name != "type" and not _has_no_effect(schema, name)]
    kind = schema.get("type")
    # Every keyword is for one type of value. With a known type its check need not ask for it.
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _UnknownKeywordError
    if not _KEYWORDS.keys() >= set(keywords):
        raise _UnknownKeywordError
    return _all_of(_TYPES[kind], [_KEYWORDS[name](schema[name]) for name in keywords])


def _has_no_effect(schema: Mapping[str, Any], keyword: str) -> bool:
    if keyword == "additionalProperties":
        return schema[keyword] is True
    return keyword in _WITHOUT_EFFECT


def _all_of(type_check: Check, checks: list[Check]) -> Check:
    # The type comes first: the other checks fail on values of another type.
    return lambda value: type_check(value) and all(check(value) for check in checks)
