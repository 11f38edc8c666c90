"""Parts: what the description of the API refers to by name and no record of an answer is.

A filter contains filters, so its schema cannot stand where it is used.
"""

from typing import Any, Final

from fastapi import FastAPI, Request
from pydantic import WithJsonSchema

from schemas.event_schemas import validator
from schemas.events import ImageArrived
from schemas.filter_schema import filter_parts, reference
from schemas.records import JsonObject
from workers.api.json_body import PART, parse_json

FILTER: Final = "Filter"
METADATA: Final = "Metadata"


def part(name: str, *, or_null: bool = False) -> WithJsonSchema:
    """The schema of a field that is described by a part."""
    one = {PART: name}
    return WithJsonSchema({"anyOf": [one, {"type": "null"}]} if or_null else one)


def add_parts(app: FastAPI) -> None:
    """Add the parts to an application's description."""
    event: Any = validator(ImageArrived.NAME, ImageArrived.SCHEMA).schema
    described = {METADATA: event["properties"][METADATA.lower()], **filter_parts()}
    app.openapi()["components"]["schemas"].update(described)


def json_parameter(name: str, named_part: str, about: str) -> JsonObject:
    """Describe a parameter of the address that is JSON."""
    return {
        "name": name,
        "in": "query",
        "description": about,
        "content": {"application/json": {"schema": reference(named_part)}},
    }


def json_of(request: Request, name: str, example: str) -> Any:
    """A parameter of the address that is JSON, parsed; None where it is left out."""
    text = request.query_params.get(name)
    return None if text is None else parse_json(text.encode(), f"the parameter {name}", example)
