"""Metadata: what a producer says of an image beside captions, and the rules for it.

A flat JSON object. A value is a text, a number, true or false, or tags: a list of texts. A text in
the form of RFC 3339's date-time is a time. Metadata belongs to a version of an image and never
changes under it.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from schemas.errors import UsageError

Scalar: TypeAlias = str | int | float | bool
MetadataValue: TypeAlias = Scalar | tuple[str, ...]
Metadata: TypeAlias = Mapping[str, MetadataValue]

# Fields of one image.
MAX_FIELDS = 32

# Characters of a text: a title, an address, a name.
MAX_TEXT = 1024

# Tags of one field, and characters of each.
MAX_TAGS = 64
MAX_TAG = 128

# Bytes of all metadata of an image as compact JSON: every query worker holds it in memory.
MAX_BYTES = 4096

# The largest whole number that a float64, and so every JSON parser, holds exactly.
MAX_NUMBER = 2**53

FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
FIELD_NAME_RULE = "1 to 64 letters A to Z, digits, _, . and -, beginning with a letter or _"

# What is meant as a time, and what of it is one.
_LIKE_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d+)?)? ?([Zz]|[+-]\d{2}(:?\d{2})?)?", re.ASCII
)
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")

# Characters of a refused value that a message shows.
_SHOWN = 80


def checked_metadata(document: object) -> Metadata:
    """Return the metadata in one form: numbers with a whole value as integers, tags sorted.

    null and an empty list are as if absent. `UsageError` names the field, and says what is allowed.
    """
    if not isinstance(document, Mapping):
        raise UsageError(
            f"metadata must be an object of fields and values, got {shown(document)}; correct it"
        )
    metadata: dict[str, MetadataValue] = {}
    for name, value in document.items():
        _require_name(name)
        if value is not None and value != [] and value != ():
            metadata[name] = _checked_value(name, value)
    if len(metadata) > MAX_FIELDS:
        raise UsageError(
            f"metadata must have at most {MAX_FIELDS} fields, got {len(metadata)}; send fewer"
        )
    size = len(canonical(metadata).encode())
    if size > MAX_BYTES:
        raise UsageError(
            f"metadata must have at most {MAX_BYTES:,} bytes of JSON, got {size:,}; send less"
        )
    return metadata


def canonical(metadata: Metadata) -> str:
    """Compact JSON with sorted fields: equal texts mean equal metadata."""
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def microseconds(text: str) -> int | None:
    """The moment that a text names, in microseconds since 1970; None for one that is no time.

    `UsageError` for a text in the form of a time that names none, such as one without a zone.
    """
    if not _LIKE_TIME.fullmatch(text):
        return None
    written = text.upper()
    try:
        if _TIME.fullmatch(written):
            return (datetime.fromisoformat(written) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        "a time must be as in RFC 3339, with seconds and a zone, such as 2026-01-31T12:00:00Z, "
        f"got {text}; correct it"
    )


def stored_metadata(document: Mapping[str, Any]) -> Metadata:
    """Metadata as it was stored, with tags as tuples again."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in document.items()}


def checked_number(name: str, value: int | float) -> int | float:
    """A number that every JSON parser reads the same; a whole one as an integer."""
    # NaN compares with nothing.
    if not abs(value) <= MAX_NUMBER:
        raise UsageError(
            f"{name} must be a number between -2^53 and 2^53, got {shown(value)}; "
            "send an identifier as a text"
        )
    return int(value) if float(value).is_integer() else value


def checked_text(name: str, text: str, most: int) -> str:
    """A text of at most `most` characters that can be stored."""
    if len(text) > most:
        raise UsageError(
            f"{name} must have at most {most:,} characters, got {len(text):,}; shorten it"
        )
    if _NOT_STORABLE.search(text):
        raise UsageError(
            f"{name} must have no NUL and no half of a surrogate pair, got {shown(text)}; "
            "correct it"
        )
    try:
        microseconds(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    return text


def shown(value: object) -> str:
    """A refused value for a message: all of it could be megabytes."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        # Python refuses to write integers of thousands of digits.
        return "a larger one"
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not FIELD_NAME.fullmatch(name):
        raise UsageError(
            f"a field of metadata must have a name of {FIELD_NAME_RULE}, got {shown(name)}; "
            "rename it"
        )


def _checked_value(name: str, value: Any) -> MetadataValue:
    # In Python a bool is an int.
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return checked_number(f"metadata field {name}", value)
    if isinstance(value, str):
        return checked_text(f"metadata field {name}", value, MAX_TEXT)
    if isinstance(value, list | tuple):
        return _checked_tags(name, value)
    raise UsageError(
        f"metadata field {name} must be a text, a number, true, false or a list of texts, "
        f"got {shown(value)}; flatten it"
    )


def _checked_tags(name: str, tags: list[Any] | tuple[Any, ...]) -> tuple[str, ...]:
    """Tags are a set: each once, sorted."""
    for tag in tags:
        if not isinstance(tag, str):
            raise UsageError(
                f"metadata field {name} must be a list of texts, got {shown(tag)} in it; "
                "write it as a text"
            )
        checked_text(f"a tag of metadata field {name}", tag, MAX_TAG)
    distinct = sorted(set(tags))
    if len(distinct) > MAX_TAGS:
        raise UsageError(
            f"metadata field {name} must have at most {MAX_TAGS} tags, got {len(distinct)}; "
            "send fewer"
        )
    return tuple(distinct)
