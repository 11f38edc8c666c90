"""Image ids in addresses: percent-encoded, so that they may hold anything that events allow."""

from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Path

from stream.images.redaction import printable
from stream.manifest import MAX_ID_LENGTH
from workers.api.json_body import RequestRefusedError
from workers.query.query_request import ID_PATTERN

# Letters of a refused id that are quoted.
_QUOTED_LETTERS = 80

_PARAMETER = Path(
    description="percent-encoded, slashes too",
    examples=["holiday/beach.jpg"],
    # Of the id itself. Here it is encoded still, so it is checked below.
    json_schema_extra={"minLength": 1, "maxLength": MAX_ID_LENGTH, "pattern": ID_PATTERN},
)


def checked_id(raw: str) -> str:
    """The id that a part of an address stands for; `RequestRefusedError` when events allow none."""
    try:
        image_id = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RequestRefusedError(
            "the image id must be UTF-8, percent-encoded, got other bytes; encode it"
        ) from None
    # Clients take dots for a step in the address, and would ask for something else.
    if image_id in (".", ".."):
        raise RequestRefusedError("the image id must not be . or .. in an address; use another id")
    return checked_id_text(image_id)


def checked_id_text(image_id: str) -> str:
    """An image id as it is; `RequestRefusedError` when events allow no such."""
    if len(image_id) > MAX_ID_LENGTH or any(letter < " " for letter in image_id):
        raise RequestRefusedError(
            f"the image id must have at most {MAX_ID_LENGTH} characters and no control characters,"
            f' got "{printable(image_id[:_QUOTED_LETTERS])}"; use another id'
        )
    return image_id


def _image_id(image_id: Annotated[str, _PARAMETER]) -> str:
    return checked_id(image_id)


ImageId = Annotated[str, Depends(_image_id)]
