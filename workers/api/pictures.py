"""Pictures: the stored picture of an image, as it is or smaller, from either store."""

import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from PIL import Image

from schemas.errors import RejectInputError
from stream.images.store import ImageStore
from workers.api.addresses import PICTURE_PATH
from workers.api.answers import KEYED, NOT_FOUND, only, refusals
from workers.api.context import ApiContext
from workers.api.image_ids import ImageId
from workers.api.images import UNKNOWN_IMAGE
from workers.api.json_body import RequestRefusedError
from workers.repository.connection import Connection
from workers.repository.stored_images import images_by_id

# Pixels of the longer side that may be asked for.
_SMALLEST_PX = 16
_LARGEST_PX = 2048

# Of a JPEG: what a page of small pictures looks good with.
_QUALITY = 85

# Bytes of small pictures that are kept: those of a few thousand.
_KEPT_BYTES = 32 << 20

# Seconds for which a browser shows a picture without asking. Not longer: it may be deleted.
_FRESH_S = 300

_NOT_MODIFIED = 304


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture as it is sent."""

    data: bytes
    media_type: str


class SmallPictures:
    """The small pictures that were made last. For one event loop."""

    def __init__(self, cap_bytes: int = _KEPT_BYTES) -> None:
        self._cap_bytes = cap_bytes
        self._bytes = 0
        self._pictures: OrderedDict[str, SentPicture] = OrderedDict()

    def find(self, tag: str) -> SentPicture | None:
        """The picture of a tag, if it is kept."""
        found = self._pictures.get(tag)
        if found is not None:
            self._pictures.move_to_end(tag)
        return found

    def keep(self, tag: str, picture: SentPicture) -> None:
        """Keep a picture; those that were not asked for longest go."""
        if tag in self._pictures:
            return
        self._pictures[tag] = picture
        self._bytes += len(picture.data)
        while self._bytes > self._cap_bytes:
            _, gone = self._pictures.popitem(last=False)
            self._bytes -= len(gone.data)


def picture_router(context: ApiContext) -> APIRouter:
    """The address of pictures."""
    router = APIRouter(tags=["images"])
    small = SmallPictures()
    store = context.services.store
    content = {
        "image/png": {"schema": {"type": "string", "format": "binary"}},
        "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
    }

    @router.get(
        PICTURE_PATH,
        operation_id="getPicture",
        response_class=Response,
        summary="Fetch the stored picture of an image, as PNG or smaller as JPEG",
        dependencies=[KEYED, only("size", "until", "signature")],
        responses={
            200: {"content": content, "description": "the picture"},
            _NOT_MODIFIED: {"description": "the picture that the client has"},
            **refusals(404),
        },
    )
    async def picture(
        request: Request,
        image_id: ImageId,
        size: Annotated[
            int | None,
            Query(ge=_SMALLEST_PX, le=_LARGEST_PX, description="pixels of the longer side at most"),
        ] = None,
        until: Annotated[str | None, Query(description="of a signed link")] = None,
        signature: Annotated[str | None, Query(description="of a signed link")] = None,
    ) -> Response:
        uri = await context.calls.read(lambda conn: _stored_uri(conn, image_id))
        tag = f'"{_tag(uri, size)}"'
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=_NOT_MODIFIED, headers=_headers(tag))
        found = small.find(tag)
        if found is None:
            found = await context.calls.run(lambda: _read(store, uri, size))
            if size is not None:
                small.keep(tag, found)
        return Response(found.data, media_type=found.media_type, headers=_headers(tag))

    return router


def _stored_uri(conn: Connection, image_id: str) -> str:
    image = images_by_id(conn, [image_id]).get(image_id)
    if image is None or image.state == "deleted":
        raise RequestRefusedError(UNKNOWN_IMAGE, NOT_FOUND)
    return image.normalized_uri


def _tag(uri: str, size: int | None) -> str:
    """Another one for each content and size: the address is the hash of the content."""
    return hashlib.sha256(f"{uri} {size}".encode()).hexdigest()[:32]


def _headers(tag: str) -> dict[str, str]:
    return {
        "etag": tag,
        # Not in caches that others share: who may see it, a key decides.
        "cache-control": f"private, max-age={_FRESH_S}",
        # Nothing but a picture, whatever its bytes look like.
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "content-disposition": "inline",
    }


def _read(store: ImageStore, uri: str, size: int | None) -> SentPicture:
    try:
        data = store.get(uri)
    except RejectInputError as error:
        raise RequestRefusedError(
            f"the store has lost the picture ({error.code}); ingest the image again", NOT_FOUND
        ) from error
    if size is None:
        return SentPicture(data, "image/png")
    # The store holds what this project made, and `get` has checked that it is unchanged.
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        smaller = image.convert("RGB")
    smaller.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=_QUALITY)
    return SentPicture(buffer.getvalue(), "image/jpeg")
