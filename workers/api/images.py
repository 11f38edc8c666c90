"""Images: what is stored of each, published, waited for and deleted."""

import re
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.errors import UsageError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import JsonObject
from stream.images.redaction import uri_for_answer
from workers.api.addresses import IMAGE_PATH, IMAGES_PATH
from workers.api.answers import KEYED, NOT_FOUND, only, refusals
from workers.api.arrival_waits import ArrivalWaits
from workers.api.context import ApiContext
from workers.api.explanations import explanation_of
from workers.api.image_ids import ImageId
from workers.api.json_body import RequestRefusedError
from workers.api.signatures import decoded, encoded
from workers.api.write_tokens import WriteToken
from workers.repository import generations
from workers.repository.announced_deletions import delete_announced
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.image_records import (
    ImageRecord,
    image_page,
    image_records,
    newest_images,
    places_of,
)
from workers.repository.postings import StoredPosting

# Images of one page.
_MOST_IMAGES = 100

ACCEPTED = 202

# Begins cursors of the order newest: no id has a zero byte.
_NEWEST = "\0"

_OTHER_CURSOR = (
    "the cursor must be one that a page of images in this order gave, got another; begin without"
)

UNKNOWN_IMAGE = "there is no image of this id, or it was deleted; list them at /v1/images"


class PlaceAnswer(BaseModel):
    """Where one generation has an image."""

    model_config = ConfigDict(extra="forbid")

    generation: int
    state: str
    identifier: list[int]
    leaves: list[list[int]] = Field(description="all leaves that it is posted under")


class ImageSummary(BaseModel):
    """What is stored of an image."""

    model_config = ConfigDict(extra="forbid")

    image_id: str
    version: int
    state: Literal["accepted", "indexed"]
    uri: str = Field(description="where it came from, without what may be secret")
    link: str = Field(description="opens the picture in a browser, for an hour at least")
    captions: list[str]
    metadata: dict[str, str | int | float | bool | list[str]]
    width: int
    height: int
    split: str | None
    checksum: str = Field(description="SHA-256 of the bytes that arrived")
    arrived_at: AwareDatetime
    indexed_at: AwareDatetime | None


class ImageAnswer(ImageSummary):
    """An image with its place in every generation."""

    identifier: list[int] | None = Field(description="in the live generation")
    explanation: str | None = Field(description="what the identifier says, where it was asked for")
    generations: list[PlaceAnswer]


class ImagePage(BaseModel):
    """Images in the order of their ids."""

    model_config = ConfigDict(extra="forbid")

    images: list[ImageSummary]
    cursor: str | None = Field(description="brings the next page; null on the last one")


class ArrivalAnswer(BaseModel):
    """An image that is on its way."""

    model_config = ConfigDict(extra="forbid")

    image_id: str
    version: int
    state: Literal["waiting", "searchable"]
    token: str = Field(description="for GET with wait=searchable")


class DeletionAnswer(BaseModel):
    """What a deletion did."""

    model_config = ConfigDict(extra="forbid")

    image_id: str
    deleted: bool = Field(
        description="false for an image that was unknown or deleted before; it will not come either"
    )


def image_router(context: ApiContext, waits: ArrivalWaits) -> APIRouter:
    """The addresses of images, less that which publishes them."""
    router = APIRouter(tags=["images"])
    _add_list(router, context)
    _add_reading(router, context, waits)
    _add_deletion(router, context)
    return router


def _add_list(router: APIRouter, context: ApiContext) -> None:
    @router.get(
        IMAGES_PATH,
        operation_id="listImages",
        response_model=ImagePage,
        summary="List images, in the order of their ids or newest first",
        dependencies=[KEYED, only("limit", "cursor", "order")],
        responses=refusals(),
    )
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MOST_IMAGES)] = 50,
        cursor: Annotated[
            str | None, Query(min_length=1, max_length=4096, pattern="^[A-Za-z0-9_-]+$")
        ] = None,
        order: Annotated[
            Literal["id", "newest"],
            Query(description="newest: by when they were accepted first, the last one first"),
        ] = "id",
    ) -> JsonObject:
        # One more than is shown tells whether there are more.
        read = _newest(cursor, limit + 1) if order == "newest" else _by_id(cursor, limit + 1)
        found = await context.calls.read(read)
        shown = found[:limit]
        more = len(found) > limit
        end = _NEWEST + str(shown[-1].image_key) if order == "newest" and more else ""
        return {
            "images": [_summary(image, context, request) for image in shown],
            "cursor": encoded((end or shown[-1].image_id).encode()) if more else None,
        }


def _add_reading(router: APIRouter, context: ApiContext, waits: ArrivalWaits) -> None:
    @router.get(
        IMAGE_PATH,
        operation_id="getImage",
        response_model=ImageAnswer,
        summary="Read what is stored of an image; wait until it can be found",
        dependencies=[KEYED, only("wait", "token", "explain")],
        responses={ACCEPTED: {"model": ArrivalAnswer}, **refusals(404)},
    )
    async def read(
        request: Request,
        image_id: ImageId,
        wait: Annotated[
            Literal["searchable"] | None,
            Query(description="wait for some seconds until answers contain it; 202 if they do not"),
        ] = None,
        token: Annotated[
            str | None,
            Query(max_length=100, description="of the PUT that is waited for, with wait"),
        ] = None,
        explain: Annotated[bool, Query(description="with what its identifier says")] = False,
    ) -> Response | JsonObject:
        written = None if token is None else WriteToken.parse(token)
        if wait is not None:
            waiting = await waits.wait(request, image_id, written)
            if waiting is not None:
                return JSONResponse(waiting, status_code=ACCEPTED)
        answer = await context.calls.read(lambda conn: _read(conn, image_id))
        if answer is None:
            raise RequestRefusedError(UNKNOWN_IMAGE, NOT_FOUND)
        record, places, known = answer
        document = _summary(record, context, request) | _places(places, known)
        if explain and document["identifier"] is not None:
            codes = document["identifier"][:LEVELS]
            document["explanation"] = await explanation_of(context, None, codes)
        return document


def _add_deletion(router: APIRouter, context: ApiContext) -> None:
    @router.delete(
        IMAGE_PATH,
        operation_id="deleteImage",
        response_model=DeletionAnswer,
        summary="Delete an image from all answers, in every version so far",
        dependencies=[KEYED, only()],
        responses=refusals(),
    )
    async def deleted(image_id: ImageId) -> JsonObject:
        services = context.services
        done = await context.calls.write(
            lambda conn: delete_announced(conn, services.open_log, [image_id])
        )
        return {"image_id": image_id, "deleted": bool(done.deleted)}


def _by_id(cursor: str | None, amount: int) -> Callable[[Connection], list[ImageRecord]]:
    after = None if cursor is None else _opened(cursor)
    if after is not None and "\0" in after:
        raise UsageError(_OTHER_CURSOR)
    return lambda conn: image_page(conn, after, amount)


def _newest(cursor: str | None, amount: int) -> Callable[[Connection], list[ImageRecord]]:
    before = None
    if cursor is not None:
        # A key is a bigint.
        key = re.fullmatch(f"{_NEWEST}([0-9]{{1,18}})", _opened(cursor))
        if key is None:
            raise UsageError(_OTHER_CURSOR)
        before = int(key[1])
    return lambda conn: newest_images(conn, before, amount)


def _opened(cursor: str) -> str:
    try:
        return (decoded(cursor) or b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return "\0"


def _read(
    conn: Connection, image_id: str
) -> tuple[ImageRecord, dict[int, list[StoredPosting]], dict[int, Generation]] | None:
    found = image_records(conn, [image_id])
    if not found:
        return None
    known = {generation.id: generation for generation in generations.generations(conn)}
    return found[0], places_of(conn, found[0].image_key), known


def _summary(image: ImageRecord, context: ApiContext, request: Request) -> JsonObject:
    return {
        "image_id": image.image_id,
        "version": image.version,
        "state": image.state,
        "uri": uri_for_answer(image.uri),
        "link": context.links.link(image.image_id, request),
        "captions": list(image.captions),
        "metadata": dict(image.metadata),
        "width": image.width,
        "height": image.height,
        "split": image.split,
        "checksum": image.checksum,
        "arrived_at": image.arrived_at.isoformat(),
        "indexed_at": None if image.indexed_at is None else image.indexed_at.isoformat(),
    }


def _places(places: dict[int, list[StoredPosting]], known: dict[int, Generation]) -> JsonObject:
    answers = []
    live = None
    for number, postings in places.items():
        # A generation that was dropped between the two queries is not known.
        generation = known.get(number)
        if generation is None:
            continue
        identifier = _identifier(generation.shape, postings)
        leaves = [list(generation.shape.unpack(posting.leaf)) for posting in postings]
        answers.append(
            {
                "generation": number,
                "state": generation.display_state,
                "identifier": identifier,
                "leaves": leaves,
            }
        )
        if generation.state == "live":
            live = identifier
    return {"identifier": live, "explanation": None, "generations": answers}


def _identifier(shape: IdentifierShape, postings: list[StoredPosting]) -> list[int]:
    primary = postings[0]
    return shape.identifier(primary.leaf, primary.suffix or 0)
