"""Arrival waits: clients that wait until what they published can be found. A bounded number."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request

from schemas.events import now
from schemas.records import JsonObject
from workers.api.answers import NOT_FOUND
from workers.api.call_pool import CallPool
from workers.api.json_body import RequestRefusedError
from workers.api.write_tokens import WriteToken
from workers.query.refusals import BAD_REQUEST, ClientLeftError
from workers.repository.connection import Connection, fetch_column
from workers.repository.rejections import rejections
from workers.repository.stored_images import images_by_id

# Longest wait of a request; then the client asks again.
WAIT_S = 8.0

# Seconds between looks, at first and in the end.
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5

# Clients that wait at the same time; others are told at once how far it is.
_MOST_WAITING = 64

# Images that were indexed so long ago are searchable, whatever was recorded of it.
_SURELY_VISIBLE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ArrivalState:
    """How far a version of an image is."""

    version: int
    searchable: bool
    refusal: str | None = None
    """Why intake refused it."""


def arrival_state(conn: Connection, image_id: str, token: WriteToken | None) -> ArrivalState | None:
    """How far an image is, in the version of a token or the stored one; None for an unknown one."""
    image = images_by_id(conn, [image_id]).get(image_id)
    version = 0 if token is None else token.version
    if image is not None and image.state != "deleted" and image.version >= version:
        searchable = image.state == "indexed" and _is_visible(
            conn, image.image_key, image.indexed_at
        )
        return ArrivalState(image.version, searchable)
    if token is None:
        return None
    for rejection in rejections(conn, [image_id]):
        if rejection.version == version and rejection.rejected_at >= token.since:
            return ArrivalState(version, searchable=False, refusal=rejection.reason)
    return ArrivalState(version, searchable=False)


def _is_visible(conn: Connection, image_key: int, indexed_at: datetime | None) -> bool:
    if indexed_at is not None and now() - indexed_at > _SURELY_VISIBLE:
        return True
    return bool(fetch_column(conn, "visible_images", image_keys=[image_key]))


class ArrivalWaits:
    """Waits for arrivals. For one event loop."""

    def __init__(self, calls: CallPool) -> None:
        self._calls = calls
        self._waiting = 0

    async def wait(
        self, request: Request, image_id: str, token: WriteToken | None
    ) -> JsonObject | None:
        """Wait until an image is searchable: None, or how far it is when the time is over.

        `RequestRefusedError` when intake has refused it, and for an unknown image without a token.
        """
        deadline_s = time.monotonic() + (WAIT_S if self._waiting < _MOST_WAITING else 0)
        pause_s = _FIRST_LOOK_S
        self._waiting += 1
        try:
            while True:
                state = await self._calls.read(lambda conn: arrival_state(conn, image_id, token))
                if state is None:
                    raise RequestRefusedError(
                        "there is no image of this id; wait with the token of its PUT", NOT_FOUND
                    )
                if state.refusal is not None:
                    raise RequestRefusedError(
                        f"the image was refused: {state.refusal}", BAD_REQUEST
                    )
                if state.searchable:
                    return None
                if time.monotonic() >= deadline_s:
                    return arrival_document(image_id, state.version, "waiting", token)
                if await request.is_disconnected():
                    raise ClientLeftError("the client left before its image was searchable")
                await asyncio.sleep(pause_s)
                pause_s = min(_LAST_LOOK_S, 1.5 * pause_s)
        finally:
            self._waiting -= 1


def arrival_document(
    image_id: str, version: int, state: str, token: WriteToken | None
) -> JsonObject:
    """The answer about an image that was published."""
    known = token or WriteToken(version, now())
    return {"image_id": image_id, "version": version, "state": state, "token": known.text()}
