"""The answers that all resources share: refusals, and what the description says of them."""

from collections import Counter
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from stream.images.redaction import printable
from workers.api.json_body import RequestRefusedError

# Only for the description of the API: the access gate has judged the key before.
KEYED = Security(HTTPBearer(auto_error=False, description="where keys are configured"))

NOT_FOUND = 404
CONFLICT = 409
GONE = 410

# Refusals of every address that needs a key.
_OF_EVERY_ADDRESS = (400, 401, 403, 421, 422, 429, 500, 503)

# Refusals of every address that takes a body.
_OF_BODIES = (408, 413, 415)

# Letters of a parameter's name that are quoted.
_QUOTED_LETTERS = 80


class ErrorAnswer(BaseModel):
    """Every answer but a good one."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(min_length=1, description="one sentence for people")


def refusals(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """What a description says of the refusals of an address, beside those of every one."""
    wanted = {*_OF_EVERY_ADDRESS, *statuses, *(_OF_BODIES if body else ())}
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted(wanted):
        described[status] = {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
    return described


def links_to(*operations: str, image_id: str) -> dict[str, Any]:
    """What a description says can be asked of the image of an answer: operations by their names."""
    return {
        name: {"operationId": name, "parameters": {"image_id": image_id}} for name in operations
    }


def only(*names: str, repeated: Collection[str] = ()) -> Any:
    """Refuse parameters of the address that are unknown, or there twice and not of `repeated`."""

    def check(request: Request) -> None:
        for name, times in Counter(key for key, _ in request.query_params.multi_items()).items():
            shown = printable(name[:_QUOTED_LETTERS])
            if name not in names:
                allowed = ", ".join(names) or "none"
                raise RequestRefusedError(
                    f'the parameters must be {allowed}, got "{shown}"; leave it out'
                )
            if times > 1 and name not in repeated:
                raise RequestRefusedError(f'a parameter must be there once, got "{shown}" twice')

    return Depends(check)
