"""The filter's schema: the grammar of `schemas.filters` as JSON Schema, for the API's description.

What it cannot say, the parser does: how many parts there are and how deep, and that a text in the
form of a time names a moment.
"""

from typing import Final

from schemas.filters import MAX_PARTS, MAX_VALUES
from schemas.metadata import FIELD_NAME, MAX_NUMBER, MAX_TEXT
from schemas.records import JsonObject

# Where a description of an API keeps its parts.
_PARTS: Final = "#/components/schemas/"

_FIELD: Final = {"type": "string", "pattern": f"^{FIELD_NAME.pattern}$"}
_TEXT: Final = {"type": "string", "maxLength": MAX_TEXT, "pattern": r"^[^\u0000]*$"}
_NUMBER: Final = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
_BOOLEAN: Final = {"type": "boolean"}
# RFC 3339, with seconds and a zone.
_TIME: Final = {
    "type": "string",
    "pattern": (
        r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
        r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
        r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
    ),
}
_VALUE: Final = {"anyOf": [_TEXT, _NUMBER, _BOOLEAN]}

# The two ways to say each end of a range.
_LOW = ("gt", "gte")
_HIGH = ("lt", "lte")


def reference(part: str) -> JsonObject:
    """A reference to a part from anywhere in the description."""
    return {"$ref": _PARTS + part}


def filter_parts() -> dict[str, JsonObject]:
    """The parts of the schema by name: `Filter`, and the forms that a filter may have."""
    some = {"type": "array", "items": reference("Filter"), "minItems": 1, "maxItems": MAX_PARTS}
    values = {"type": "array", "items": _VALUE, "minItems": 1, "maxItems": MAX_VALUES}
    forms = {
        "EqualsFilter": _condition("the field has this value", equals=_VALUE),
        "AnyFilter": _condition("the field has one of these values", any=values),
        "ExistsFilter": _condition("the image has the field, or lacks it", exists=_BOOLEAN),
        "NumberFilter": _range("the field lies in a range of numbers", _NUMBER),
        "TimeFilter": _range("the field lies in a range of times, as in RFC 3339", _TIME),
        "AndFilter": _exactly("the image matches all of these", **{"and": some}),
        "OrFilter": _exactly("the image matches one of these", **{"or": some}),
        "NotFilter": _exactly("the image does not match this", **{"not": reference("Filter")}),
    }
    whole = {
        "description": "which images: a condition on a field, or and, or, not of some",
        "anyOf": [reference(name) for name in forms],
        "examples": [{"field": "year", "gte": 2020}],
    }
    return {"Filter": whole, **forms}


def _condition(about: str, **operator: JsonObject) -> JsonObject:
    return _exactly(about, field=_FIELD, **operator)


def _range(about: str, value: JsonObject) -> JsonObject:
    """One end is enough, and each is said in one way."""
    schema = _exactly(about, field=_FIELD)
    schema["properties"] |= dict.fromkeys((*_LOW, *_HIGH), value)
    twice = [{"required": list(names)} for names in (_LOW, _HIGH)]
    return schema | {"minProperties": 2, "not": {"anyOf": twice}}


def _exactly(about: str, **properties: JsonObject) -> JsonObject:
    return {
        "type": "object",
        "description": about,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
