"""The JSON Schemas of events, and what a document breaks of them.

`jsonschema-rs` says fifty times as fast whether a document fits; what is wrong with one that does
not is left to `jsonschema`, whose messages do not quote the whole document.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator, ValidationError

# Characters of a validator's message that a refusal quotes; the message quotes the whole value.
_REASON_LENGTH = 300


# Building a validator is slow, and every event needs one.
@cache
def validator(name: str, version: int) -> Draft202012Validator:
    """The validator of a version of an event's JSON Schema, by the event's NAME."""
    file = resources.files("schemas").joinpath("events").joinpath(f"{name}.v{version}.json")
    return Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))


@cache
def quick_validator(name: str, version: int) -> jsonschema_rs.Draft202012Validator:
    """The same schema, for nothing but whether a document fits it."""
    return jsonschema_rs.Draft202012Validator(json.dumps(validator(name, version).schema))


def schema_problem(name: str, version: int, document: Mapping[str, Any]) -> str:
    """What a document breaks of an event's schema, for people; empty for nothing."""
    try:
        if quick_validator(name, version).is_valid(document):
            return ""
    except ValueError:  # of numbers and depths that it cannot read
        pass
    problem = next(validator(name, version).iter_errors(document), None)
    return "" if problem is None else _described(problem)


def _described(problem: ValidationError) -> str:
    place = "/".join(str(part) for part in problem.absolute_path) or "the document"
    if place.endswith("uri"):
        # The validator's own message quotes the value, and an address may hold a secret.
        return f"{place}: it breaks the rule {problem.validator} {problem.validator_value}"
    return f"{place}: {problem.message[:_REASON_LENGTH]}"
