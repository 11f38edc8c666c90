"""The JSON body: the document of a request, read strictly.

Whatever is wrong is refused with one short sentence, which quotes at most a few letters of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import UsageError
from schemas.filter_schema import reference
from schemas.records import JsonObject
from stream.images.redaction import printable

# Letters of a refused value that are quoted.
_QUOTED_LETTERS = 80

UNPROCESSABLE = 422
UNSUPPORTED_MEDIA_TYPE = 415

# In a model's schema: the name of a part of the description (`workers.api.parts`). pydantic takes
# no reference to what is no model.
PART: Final = "$part"

B = TypeVar("B", bound=BaseModel)


class RequestRefusedError(UsageError):
    """A request that is not one of ours, with the HTTP status that says so."""

    def __init__(self, message: str, status: int = UNPROCESSABLE) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class BodyForm(Generic[B]):
    """What the body of an address must be."""

    model: type[B]
    allowed: Mapping[str, str]
    """Completes "X must be …", by field; other fields are refused."""
    example: str

    def parse(self, content_type: str | None, body: bytes) -> B:
        """Read a request's body; `RequestRefusedError` says what is wrong with it."""
        # Without a content type, as some clients send it, it is taken for what it has to be.
        if content_type is not None and not is_json(content_type):
            raise RequestRefusedError(
                f"the content type must be application/json, got {quoted(content_type)}; change it",
                UNSUPPORTED_MEDIA_TYPE,
            )
        return self.check(parse_json(body, "the body", self.example))

    def check(self, document: object) -> B:
        """Read a document that was parsed."""
        if not isinstance(document, dict):
            raise RequestRefusedError(
                f"the body must be a JSON object such as {self.example}, got {shown(document)}"
            )
        for name in document:
            # Before pydantic looks: it stumbles over names that are not valid Unicode.
            if name not in self.allowed:
                raise RequestRefusedError(
                    f"the fields must be {', '.join(self.allowed)}, got {quoted(name)};"
                    " leave it out"
                )
        try:
            return self.model.model_validate(document)
        except ValidationError as error:
            raise RequestRefusedError(self._sentence(document, error)) from None

    def description(self) -> JsonObject:
        """The body for OpenAPI."""
        schema = self.model.model_json_schema()
        parts = schema.pop("$defs", {})
        return {"application/json": {"schema": _inlined(schema, parts)}}

    def _sentence(self, document: JsonObject, error: ValidationError) -> str:
        """Say what the first problem is. pydantic's own texts quote the whole value."""
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if not problem["loc"]:
            # Of the whole document: a sentence of the model's own.
            return str(problem["msg"]).removeprefix("Value error, ")
        name = str(problem["loc"][0])
        if name not in document:
            return f"{name} is missing; it must be {self.allowed[name]}"
        value = document[name]
        if len(problem["loc"]) > 1 and isinstance(value, list):
            # pydantic adds kinds of its own to the place, such as constrained-str.
            parts = [str(part) for part in problem["loc"][1:] if "-" not in str(part)]
            place = ".".join(parts)
            if not place:
                return f"{name} must be {self.allowed[name]}, got a list"
            return f"{name} must be {self.allowed[name]}, got a list that is wrong at {place}"
        return f"{name} must be {self.allowed[name]}, got {shown(value)}"


def _inlined(schema: Any, parts: JsonObject) -> Any:
    """A schema with the parts that it refers to in their places: it is a part itself."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    if PART in schema:
        return reference(schema[PART])
    return {name: _inlined(value, parts) for name, value in schema.items()}


def is_json(content_type: str) -> bool:
    """Whether a content type is one of JSON's."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def parse_json(data: bytes, what: str, example: str) -> Any:
    """Read JSON strictly; `RequestRefusedError` says where `what` is none."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestRefusedError(
            f"{what} must be JSON in UTF-8, got other bytes at position {error.start}; encode it"
        ) from None
    try:
        return json.loads(
            text,
            parse_float=_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repeats,
        )
    except json.JSONDecodeError as error:
        raise RequestRefusedError(
            f"{what} must be JSON such as {example}, got something else at line {error.lineno},"
            f" column {error.colno}"
        ) from None
    except RecursionError:
        raise RequestRefusedError(
            f"{what} must be JSON such as {example}, got one that is nested too deep"
        ) from None
    except ValueError:
        # Python reads no whole number of more than a few thousand digits.
        raise RequestRefusedError(
            f"{what} must hold numbers of a few digits, got one of thousands; shorten it"
        ) from None


def _number(text: str) -> int | float:
    """A number with a point; 3.0 and 3 are the same to JSON, and to JSON Schema an integer."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse_constant(name: str) -> Any:
    raise RequestRefusedError(f"JSON has no {name}; give a number, or leave the field out")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise RequestRefusedError(
                f"JSON must name each field once, got {quoted(name)} twice; drop one"
            )
        seen.add(name)
    return document


def shown(value: Any) -> str:
    """Describe a JSON value in a few letters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        if len(value) > _QUOTED_LETTERS:
            return f"{len(value):,} letters"
        return quoted(value)
    # Numbers, true, false and null as JSON writes them. A number may have thousands of digits.
    return _shortened(json.dumps(value))


def quoted(text: str) -> str:
    """Quote the beginning of a text."""
    return f'"{_shortened(text)}"'


def _shortened(text: str) -> str:
    shown = printable(text[:_QUOTED_LETTERS])
    return shown if len(text) <= _QUOTED_LETTERS else f"{shown}…"
