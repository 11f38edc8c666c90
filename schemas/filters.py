"""Filters: which images a query may return, by their metadata. A small closed grammar over JSON.

    {"field": "year", "equals": 2026}            a value: text, number, time, true or false
    {"field": "tags", "any": ["dog", "cat"]}     any of some values
    {"field": "year", "gte": 2020, "lt": 2026}   a range of numbers or of times
    {"field": "by", "exists": true}
    {"and": [...]}, {"or": [...]}, {"not": {...}}

Tags equal each text among them. A condition says nothing of an image that lacks the field, or has
no value of the kind that is asked for: neither the condition nor its `not` matches it, as with NULL
in SQL. `exists` always says something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from schemas.errors import UsageError
from schemas.metadata import (
    FIELD_NAME,
    FIELD_NAME_RULE,
    MAX_TEXT,
    checked_number,
    checked_text,
    microseconds,
    shown,
)

# Filters inside of each other.
MAX_DEPTH = 8

# Conditions and their combinations in one filter.
MAX_PARTS = 64

# Values of one condition.
MAX_VALUES = 256

_COMBINATIONS = ("and", "or", "not")
_BOUNDS = ("gt", "gte", "lt", "lte")
_OPERATORS = ("equals", "any", *_BOUNDS, "exists")

_EXAMPLE = '{"field": "year", "gte": 2020}'


class FilterError(UsageError):
    """A filter that is not of the grammar."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A value of the field is one of these, by their kind.

    A text in the form of a time is among `texts` and `times`: tags are texts whatever their form.
    """

    field: str
    texts: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    booleans: tuple[bool, ...] = ()
    times: tuple[int, ...] = ()
    """microseconds since 1970"""


@dataclass(frozen=True, slots=True)
class Bound:
    """An end of a range."""

    value: int | float
    """A number, or microseconds since 1970, an integer: a float64 is too coarse for some times."""
    is_open: bool
    """Whether the value itself is outside."""


@dataclass(frozen=True, slots=True)
class Range:
    """The field's number, or its time, lies between two bounds; without a bound there is no end."""

    field: str
    of_times: bool
    low: Bound | None
    high: Bound | None


@dataclass(frozen=True, slots=True)
class Exists:
    """The image has the field."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    """The filter says something of the image, and the image does not match it."""

    part: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """The image matches all parts."""

    parts: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """The image matches at least one part."""

    parts: "tuple[Filter, ...]"


Filter: TypeAlias = AnyOf | Range | Exists | Not | And | Or


def parse_filter(document: object) -> Filter:
    """Read a filter from its JSON; `FilterError` says where it is wrong and what is allowed."""
    parser = _Parser()
    return parser.parse(document, "filter", 1)


class _Parser:
    """Reads one filter, and counts its parts."""

    def __init__(self) -> None:
        self._parts = 0

    def parse(self, document: object, place: str, depth: int) -> Filter:
        self._parts += 1
        if depth > MAX_DEPTH or self._parts > MAX_PARTS:
            raise FilterError(
                f"a filter must have at most {MAX_PARTS} parts, {MAX_DEPTH} inside of each other, "
                f"got more at {place}; simplify it"
            )
        if not isinstance(document, Mapping):
            raise FilterError(
                f"{place} must be an object such as {_EXAMPLE}, got {shown(document)}; correct it"
            )
        combinations = [name for name in _COMBINATIONS if name in document]
        if not combinations:
            return _condition(document, place)
        name = combinations[0]
        if len(document) > 1:
            raise FilterError(
                f"{place} must have {name} alone, got {_names(document)}; combine them with and"
            )
        return self._combination(name, document[name], f"{place}/{name}", depth + 1)

    def _combination(self, name: str, value: object, place: str, depth: int) -> Filter:
        if name == "not":
            return Not(self.parse(value, place, depth))
        if not isinstance(value, list) or not value:
            raise FilterError(f"{place} must be a list of filters, got {shown(value)}; add one")
        parts = []
        for number, part in enumerate(value):
            parts.append(self.parse(part, f"{place}/{number}", depth))
        return And(tuple(parts)) if name == "and" else Or(tuple(parts))


def _condition(document: Mapping[str, Any], place: str) -> Filter:
    field = document.get("field")
    if not isinstance(field, str) or not FIELD_NAME.fullmatch(field):
        raise FilterError(
            f"{place} must have and, or, not, or a field with a name of {FIELD_NAME_RULE}, "
            f"got {shown(field) if 'field' in document else _names(document)}; "
            f"write it such as {_EXAMPLE}"
        )
    operators = [name for name in document if name != "field"]
    unknown = [name for name in operators if name not in _OPERATORS]
    is_range = bool(operators) and set(operators) <= set(_BOUNDS)
    if unknown or not (is_range or len(operators) == 1):
        raise FilterError(
            f"{place}, field {field}, must have one of equals, any and exists, or some of "
            f"{', '.join(_BOUNDS)}, got {_names(unknown or operators)}; correct it"
        )
    place = f"{place}, field {field}"
    if is_range:
        return _range(field, {name: document[name] for name in operators}, place)
    if "exists" in document:
        return _exists(field, document["exists"], place)
    if "equals" in document:
        return _any_of(field, [document["equals"]], f"{place}: equals")
    values = document["any"]
    if not isinstance(values, list) or not 0 < len(values) <= MAX_VALUES:
        found = f"{len(values)} of them" if isinstance(values, list) else shown(values)
        raise FilterError(f"{place}: any must be a list of 1 to {MAX_VALUES} values, got {found}")
    return _any_of(field, values, f"{place}: any")


def _exists(field: str, value: object, place: str) -> Filter:
    if not isinstance(value, bool):
        raise FilterError(f"{place}: exists must be true or false, got {shown(value)}")
    return Exists(field) if value else Not(Exists(field))


def _any_of(field: str, values: Sequence[object], place: str) -> AnyOf:
    texts: set[str] = set()
    numbers: set[float] = set()
    booleans: set[bool] = set()
    times: set[int] = set()
    for value in values:
        if isinstance(value, bool):
            booleans.add(value)
        elif isinstance(value, int | float):
            numbers.add(_number(value, place))
        elif isinstance(value, str):
            texts.add(value)
            moment = _time(value, place)
            if moment is not None:
                times.add(moment)
        else:
            raise FilterError(
                f"{place} must be a text, a number, a time, true or false, got {shown(value)}"
            )
    return AnyOf(
        field,
        tuple(sorted(texts)),
        tuple(sorted(numbers)),
        tuple(sorted(booleans)),
        tuple(sorted(times)),
    )


def _range(field: str, bounds: Mapping[str, object], place: str) -> Range:
    for low, high in (("gt", "gte"), ("lt", "lte")):
        if low in bounds and high in bounds:
            raise FilterError(f"{place} must have {low} or {high}, got both; leave one out")
    kinds = set()
    ends: dict[str, Bound] = {}
    for name, value in bounds.items():
        moment = _time(value, f"{place}: {name}") if isinstance(value, str) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if moment is None and not is_number:
            raise FilterError(
                f"{place}: {name} must be a number, or a time such as 2026-01-31T12:00:00Z, got "
                f"{shown(value)}; other texts have no order here"
            )
        kinds.add(moment is not None)
        end = moment if moment is not None else _number(value, f"{place}: {name}")
        ends[name[:2]] = Bound(end, is_open=len(name) == 2)
    if len(kinds) > 1:
        raise FilterError(f"{place} must have two numbers or two times, got one of each")
    return Range(field, kinds.pop(), ends.get("gt"), ends.get("lt"))


def _number(value: Any, place: str) -> float:
    try:
        return float(checked_number(place, value))
    except UsageError as error:
        raise FilterError(str(error)) from None


def _time(text: str, place: str) -> int | None:
    try:
        checked_text(place, text, MAX_TEXT)
    except UsageError as error:
        raise FilterError(str(error)) from None
    return microseconds(text)


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Names for a message, a few letters of each."""
    listed = list(names)
    return ", ".join(shown(name) for name in listed[:4]) if listed else "nothing"
