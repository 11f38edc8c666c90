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


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_null(value: Any) -> bool:
    return value is None


_TYPES: Mapping[str, Check] = {
    "string": _is_string,
    "array": _is_array,
    "object": _is_object,
    "boolean": _is_boolean,
    "null": _is_null,
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


def _each_value(schema: Mapping[str, Any]) -> Check:
    check = _compile(schema)
    return lambda value: all(map(check, value.values()))


def _each_name(schema: Mapping[str, Any]) -> Check:
    check = _compile(schema)
    return lambda value: all(map(check, value))


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
    "maxProperties": _size_at_most,
    "propertyNames": _each_name,
    "additionalProperties": _each_value,
}
# Of a value that may have one of several types: the type that each keyword is for.
_KEYWORDS_OF: Mapping[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum"),
    "array": ("minItems", "maxItems", "items"),
    "boolean": (),
    "null": (),
}
_WITHOUT_EFFECT = frozenset({"$schema", "title", "description"})


def _compile(schema: Mapping[str, Any]) -> Check:
    keywords = [name for name in schema if name != "type" and not _has_no_effect(schema, name)]
    kind = schema.get("type")
    if isinstance(kind, list):
        return _compile_union(schema, kind, keywords)
    # Every keyword is for one type of value. With a known type its check need not ask for it.
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _UnknownKeywordError
    if not _KEYWORDS.keys() >= set(keywords) or _is_closed(schema):
        raise _UnknownKeywordError
    return _all_of(_TYPES[kind], [_KEYWORDS[name](schema[name]) for name in keywords])


def _compile_union(schema: Mapping[str, Any], kinds: list[str], keywords: list[str]) -> Check:
    """A value of any of some types, which has to satisfy the keywords of its own type only."""
    checks = []
    known: set[str] = set()
    for kind in kinds:
        if kind not in _KEYWORDS_OF:
            raise _UnknownKeywordError
        own = [name for name in keywords if name in _KEYWORDS_OF[kind]]
        known.update(own)
        checks.append(_compile({"type": kind, **{name: schema[name] for name in own}}))
    if not known >= set(keywords):
        raise _UnknownKeywordError
    return lambda value: any(check(value) for check in checks)


def _has_no_effect(schema: Mapping[str, Any], keyword: str) -> bool:
    if keyword == "additionalProperties":
        return schema[keyword] is True
    return keyword in _WITHOUT_EFFECT


def _is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether some members of an object are told apart from the others, or forbidden."""
    others = schema.get("additionalProperties", True)
    return others is False or (others is not True and "properties" in schema)


def _all_of(type_check: Check, checks: list[Check]) -> Check:
    # The type comes first: the other checks fail on values of another type.
    return lambda value: type_check(value) and all(check(value) for check in checks)
