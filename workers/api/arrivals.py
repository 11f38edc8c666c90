"""Arrivals: images that clients put, published as any producer publishes them."""

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import RejectInputError
from schemas.events import ARRIVED, ImageArrived, decode, encode, now
from schemas.metadata import Metadata, canonical, checked_metadata
from schemas.records import JsonObject
from stream.images.decode_protocol import LONGEST_SIDE
from stream.images.store import UPLOAD_SUFFIX
from stream.log.event_log import EventLog, message
from workers.api.addresses import IMAGE_PATH
from workers.api.answers import KEYED, links_to, only, refusals
from workers.api.arrival_waits import ArrivalWaits, arrival_document
from workers.api.context import ApiContext
from workers.api.image_ids import ImageId
from workers.api.images import ACCEPTED, ArrivalAnswer
from workers.api.json_body import BodyForm
from workers.api.parts import METADATA, json_of, json_parameter, part
from workers.api.uploads import (
    PICTURE_TYPES,
    Uploads,
    is_picture,
    require_body_type,
)
from workers.api.write_tokens import WriteToken
from workers.query.refusals import read_body
from workers.repository.connection import Connection, fetch_rows, transaction
from workers.repository.deletions import deleted_versions
from workers.repository.stored_images import StoredImage, images_by_id
from workers.runtime.services import Services

# The highest version: what PostgreSQL's `int` holds.
_MOST_VERSION = 2**31 - 1

# Bytes of a body in JSON: those of an event.
_MAX_BODY_BYTES = 1 << 20

_MOST_CAPTIONS = 1000

# Letters of an address, as the event's schema has it.
_MOST_URI_LETTERS = 8192

_OK = 200

_NO_NUL: Final = r"^[^\u0000]*$"

# Parameters of the address.
_OF_UPLOADS = ("caption", "version", "metadata")
_PARAMETERS = ("wait", *_OF_UPLOADS)

_METADATA: Final = json_parameter("metadata", METADATA, "of uploaded bytes")

# What ends the name of a stored upload, by its content type; what it really is, its bytes say.
_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}

Caption = Annotated[str, Field(pattern=_NO_NUL)]
Captions = Annotated[list[Caption], Field(max_length=_MOST_CAPTIONS)]


class ArrivalRequest(BaseModel):
    """An image that lies at an address."""

    model_config = ConfigDict(extra="forbid", strict=True)

    uri: Annotated[
        str,
        Field(
            min_length=1,
            max_length=_MOST_URI_LETTERS,
            pattern=r"^[^\u0000]+$",
            description="as events have it; a source that is not allowed is refused by intake",
            examples=["https://pictures.example.org/beach.jpg"],
        ),
    ]
    captions: Captions = Field(default_factory=list)
    test_captions: Captions = Field(default_factory=list)
    split: Annotated[str | None, Field(pattern=_NO_NUL)] = None
    version: Annotated[int | None, Field(ge=1, le=_MOST_VERSION)] = None
    metadata: Annotated[
        dict[str, Any], Field(description="what filters may ask for"), part(METADATA)
    ] = Field(default_factory=dict)


# What can be asked of an image that was put.
_LINKS: Final = links_to("getImage", "getPicture", "deleteImage", image_id="$request.path.image_id")

_FORM: Final = BodyForm(
    ArrivalRequest,
    {
        "uri": f"an address of 1 to {_MOST_URI_LETTERS:,} letters",
        "captions": f"a list of at most {_MOST_CAPTIONS:,} texts",
        "test_captions": f"a list of at most {_MOST_CAPTIONS:,} texts",
        "split": "a text or null",
        "version": "a whole number from 1 on, or null for the next one",
        "metadata": "an object of fields and values",
    },
    '{"uri": "https://pictures.example.org/beach.jpg", "captions": ["a beach"]}',
)


@dataclass(frozen=True, slots=True)
class WantedArrival:
    """What a client wants to be published."""

    image_id: str
    uri: str
    captions: tuple[str, ...]
    test_captions: tuple[str, ...] = ()
    split: str | None = None
    version: int | None = None
    """None for the next one."""
    checksum: str | None = None
    """SHA-256 of its bytes, where they are known."""
    metadata: Metadata = field(default_factory=dict, hash=False)


def publish_arrival(
    conn: Connection, open_log: Callable[[], EventLog], wanted: WantedArrival
) -> WriteToken:
    """Publish an arrival in one transaction, by which it can be waited for.

    `RejectInputError` for what no event may hold.
    """
    with closing(open_log()) as log, transaction(conn):
        ((since,),) = fetch_rows(conn, "clock")
        stored = images_by_id(conn, [wanted.image_id]).get(wanted.image_id)
        gone = deleted_versions(conn, [wanted.image_id]).get(wanted.image_id)
        version = wanted.version or version_of_put(
            wanted, stored, 0 if gone is None else gone.version
        )
        event = ImageArrived(
            image_id=wanted.image_id,
            uri=wanted.uri,
            version=version,
            captions=wanted.captions,
            test_captions=wanted.test_captions,
            split=wanted.split,
            arrived_at=now(),
            metadata=wanted.metadata,
        )
        # As whoever reads it will: it must not become a dead letter.
        decode(ARRIVED, encode(event))
        log.publish(conn, [message(event, event.image_id)])
    return WriteToken(version, _moment(since))


def version_of_put(wanted: WantedArrival, stored: StoredImage | None, deleted: int) -> int:
    """The version under which a put is published, so that it becomes what is stored.

    The same again changes nothing and keeps its version. Versions up to `deleted` are gone.
    """
    if stored is None:
        return deleted + 1
    if stored.state == "deleted":
        return max(stored.version, deleted) + 1
    same_bytes = (
        wanted.uri == stored.uri if wanted.checksum is None else wanted.checksum == stored.checksum
    )
    same_words = (
        wanted.captions,
        wanted.test_captions,
        wanted.split,
        canonical(wanted.metadata),
    ) == (
        stored.captions,
        stored.test_captions,
        stored.split,
        canonical(stored.metadata),
    )
    return stored.version if same_bytes and same_words else stored.version + 1


def _moment(value: object) -> datetime:
    assert isinstance(value, datetime)
    return value


def store_upload(services: Services, data: bytes, content_type: str) -> str:
    """Store uploaded bytes where intake reads them, and return their address."""
    if services.s3 is None:
        return services.store.put(data, UPLOAD_SUFFIX)
    media_type = content_type.partition(";")[0].strip().lower()
    return services.s3.put_original(data, _SUFFIXES.get(media_type, ".bin"))


class ArrivalDesk:
    """Publishes the images that clients put."""

    def __init__(self, context: ApiContext, waits: ArrivalWaits) -> None:
        self._context = context
        self._waits = waits
        self._uploads = Uploads(context.services.settings.max_image_bytes)

    async def uploaded(
        self, request: Request, image_id: str, captions: list[str], version: int | None
    ) -> WantedArrival:
        """Store the bytes of the body, once they are known to be a picture."""
        content_type = request.headers.get("content-type", "")
        told = json_of(request, "metadata", '{"year": 2026}')
        metadata = checked_metadata({} if told is None else told)
        async with self._uploads.place():
            data = await self._uploads.read(request)

            def stored() -> str:
                # Told at once what intake would say, and in the same guarded way.
                self._context.decoder.decode(data, LONGEST_SIDE)
                return store_upload(self._context.services, data, content_type)

            uri = await self._context.calls.run(stored)
        checksum = hashlib.sha256(data).hexdigest()
        return WantedArrival(
            image_id, uri, tuple(captions), version=version, checksum=checksum, metadata=metadata
        )

    async def announced(self, request: Request, image_id: str) -> WantedArrival:
        """Read what the body says of an image that lies at an address."""
        content_type = request.headers.get("content-type")
        require_body_type(content_type)
        body = await read_body(request, _MAX_BODY_BYTES)
        told = _FORM.parse(content_type, body)
        return WantedArrival(
            image_id,
            told.uri,
            tuple(told.captions),
            tuple(told.test_captions),
            told.split,
            told.version,
            metadata=checked_metadata(told.metadata),
        )

    async def publish(self, request: Request, wanted: WantedArrival, *, wait: bool) -> Response:
        """Publish it, and wait until it can be found if that is asked for."""
        services = self._context.services
        token = await self._context.calls.write(
            lambda conn: publish_arrival(conn, services.open_log, wanted)
        )
        waiting = arrival_document(wanted.image_id, token.version, "waiting", token)
        if not wait or await self._waits.wait(request, wanted.image_id, token) is not None:
            return JSONResponse(waiting, status_code=ACCEPTED)
        return JSONResponse(waiting | {"state": "searchable"}, status_code=_OK)


def arrival_router(context: ApiContext, waits: ArrivalWaits) -> APIRouter:
    """The address that publishes images."""
    router = APIRouter(tags=["images"])
    desk = ArrivalDesk(context, waits)

    @router.put(
        IMAGE_PATH,
        operation_id="putImage",
        response_model=ArrivalAnswer,
        status_code=ACCEPTED,
        summary="Publish an image: its bytes, or its address and captions in JSON",
        dependencies=[KEYED, only(*_PARAMETERS, repeated=("caption",))],
        responses={
            _OK: {"model": ArrivalAnswer, "description": "searchable", "links": _LINKS},
            ACCEPTED: {"model": ArrivalAnswer, "description": "on its way", "links": _LINKS},
            **refusals(404, body=True),
        },
        openapi_extra={"requestBody": _bodies(), "parameters": [_METADATA]},
    )
    async def put(
        request: Request,
        image_id: ImageId,
        wait: Annotated[
            Literal["searchable"] | None,
            Query(description="wait for some seconds until answers contain it; 202 if they do not"),
        ] = None,
        caption: Annotated[
            list[Caption] | None, Query(description="of uploaded bytes; may be repeated")
        ] = None,
        version: Annotated[
            int | None, Query(ge=1, le=_MOST_VERSION, description="of uploaded bytes")
        ] = None,
    ) -> Response:
        if is_picture(request.headers.get("content-type")):
            wanted = await desk.uploaded(request, image_id, caption or [], version)
        else:
            refuse_parameters(request)
            wanted = await desk.announced(request, image_id)
        return await desk.publish(request, wanted, wait=wait is not None)

    return router


def refuse_parameters(request: Request) -> None:
    """`RejectInputError` where what belongs into the body of JSON is in the address."""
    if any(name in request.query_params for name in _OF_UPLOADS):
        raise RejectInputError(
            "bad-request",
            f"{', '.join(_OF_UPLOADS)} of an image in JSON must be in its body; move them",
        )


def _bodies() -> JsonObject:
    """Describe the bodies for OpenAPI."""
    content = _FORM.description()
    for media_type in PICTURE_TYPES:
        content[media_type] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": content}
