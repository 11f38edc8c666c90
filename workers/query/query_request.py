"""The query request: the JSON body of `POST /v1/query`, read strictly.

Whatever is wrong is refused with one short sentence, which quotes at most a few letters of it.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import UsageError
from stream.images.redaction import printable
from workers.query.query_text import MAX_QUERY_LETTERS, MAX_RESULTS

# Bytes of a body. The longest query, every letter of it escaped as two halves, takes 24 kB.
MAX_BODY_BYTES = 64 * 1024

# Letters of a refused value that are quoted.
_QUOTED_LETTERS = 80

# The highest number that PostgreSQL's `int` holds.
_MAX_GENERATION = 2**31 - 1

UNPROCESSABLE = 422
UNSUPPORTED_MEDIA_TYPE = 415

# Completes "X must be …", by field.
_ALLOWED = {
    "query": f"a text of 1 to {MAX_QUERY_LETTERS:,} letters",
    "k": f"a whole number from 1 to {MAX_RESULTS}",
    "generation": "the number of a generation, or null for the live one",
    "mode": '"fused" or "paper"',
}

_EXAMPLE = '{"query": "two small red circles on navy"}'


class RequestRefusedError(UsageError):
    """A request that is not one of ours, with the HTTP status that says so."""

    def __init__(self, message: str, status: int = UNPROCESSABLE) -> None:
        super().__init__(message)
        self.status = status


class QueryRequest(BaseModel):
    """A text query."""

    # Strict: neither true nor "3" nor 3.0 is a number of images.
    model_config = ConfigDict(extra="forbid", strict=True)

    query: Annotated[
        str,
        Field(
            min_length=1, max_length=MAX_QUERY_LETTERS, examples=["two small red circles on navy"]
        ),
    ]
    k: Annotated[int, Field(ge=1, le=MAX_RESULTS, description="how many images")] = 10
    generation: Annotated[
        int | None,
        Field(
            ge=1,
            le=_MAX_GENERATION,
            description="answer from this generation or not at all; the live one without",
        ),
    ] = None
    mode: Annotated[
        Literal["fused", "paper"],
        Field(description="paper: five tokens decoded, primary identifiers only"),
    ] = "fused"


def parse_request(content_type: str | None, body: bytes) -> QueryRequest:
    """Read a request's body; `RequestRefusedError` says what is wrong with it."""
    # Without a content type, as some clients send it, it is taken for what it has to be.
    if content_type is not None and not _is_json(content_type):
        raise RequestRefusedError(
            f"the content type must be application/json, got {_quoted(content_type)}; change it",
            UNSUPPORTED_MEDIA_TYPE,
        )
    document = _parse_json(body)
    if not isinstance(document, dict):
        raise RequestRefusedError(
            f"the body must be a JSON object such as {_EXAMPLE}, got {_shown(document)}"
        )
    for name in document:
        # Before pydantic looks: it stumbles over names that are not valid Unicode.
        if name not in _ALLOWED:
            raise RequestRefusedError(
                f"the fields must be {', '.join(_ALLOWED)}, got {_quoted(name)}; leave it out"
            )
    try:
        return QueryRequest.model_validate(document)
    except ValidationError as error:
        raise RequestRefusedError(_sentence(document, error)) from None


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _parse_json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestRefusedError(
            f"the body must be JSON in UTF-8, got other bytes at position {error.start}; encode it"
        ) from None
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise RequestRefusedError(
            f"the body must be JSON such as {_EXAMPLE}, got something else at line {error.lineno},"
            f" column {error.colno}"
        ) from None
    except RecursionError:
        raise RequestRefusedError(
            f"the body must be JSON such as {_EXAMPLE}, got one that is nested too deep"
        ) from None
    except ValueError:
        # Python reads no whole number of more than a few thousand digits.
        raise RequestRefusedError(
            "the body must hold numbers of a few digits, got one of thousands; shorten it"
        ) from None


def _refuse_constant(name: str) -> Any:
    raise RequestRefusedError(
        f"the body must be JSON, which has no {name}; give a number, or leave the field out"
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise RequestRefusedError(
                f"the body must name each field once, got {_quoted(name)} twice; drop one"
            )
        seen.add(name)
    return document


def _sentence(document: dict[str, Any], error: ValidationError) -> str:
    """Say what the first problem is. pydantic's own texts quote the whole value."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(problem["loc"][0])
    if name not in document:
        return f"{name} is missing; it must be {_ALLOWED[name]}"
    return f"{name} must be {_ALLOWED[name]}, got {_shown(document[name])}"


def _shown(value: Any) -> str:
    """Describe a JSON value in a few letters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        if len(value) > _QUOTED_LETTERS:
            return f"{len(value):,} letters"
        return _quoted(value)
    # Numbers, true, false and null as JSON writes them. A number may have thousands of digits.
    return _shortened(json.dumps(value))


def _quoted(text: str) -> str:
    return f'"{_shortened(text)}"'


def _shortened(text: str) -> str:
    shown = printable(text[:_QUOTED_LETTERS])
    return shown if len(text) <= _QUOTED_LETTERS else f"{shown}…"
