"""Uploads: pictures that clients send as a request's body, a bounded number at the same time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from schemas.records import ByteArray
from stream.images.decode_pool import DecodePool
from workers.api.json_body import UNSUPPORTED_MEDIA_TYPE, RequestRefusedError, quoted
from workers.query.query_line import OverloadedError
from workers.query.refusals import read_body
from workers.runtime.connection_guard import body_seconds
from workers.runtime.pictures import decoded_picture

# Content types of pictures. What it really is, its bytes say.
PICTURE_TYPES = (
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/webp",
)

# Uploads at the same time, each of which may hold a whole picture in memory.
_MOST_UPLOADS = 8


class Uploads:
    """Reads uploaded pictures. For one event loop."""

    def __init__(self, cap_bytes: int) -> None:
        """`cap_bytes`: of one picture."""
        self._cap_bytes = cap_bytes
        self._free = _MOST_UPLOADS

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one upload until it is dealt with; `OverloadedError` when there is none."""
        if not self._free:
            raise OverloadedError(
                f"{_MOST_UPLOADS} pictures are being uploaded already; try again in a second"
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def read(self, request: Request) -> bytes:
        """The bytes of a picture; `RequestRefusedError` when they are too many or too slow."""
        return await read_body(request, self._cap_bytes, body_seconds(self._cap_bytes))


def is_picture(content_type: str | None) -> bool:
    """Whether a body is declared as a picture."""
    if content_type is None:
        return False
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.startswith("image/") or media_type in PICTURE_TYPES


def require_body_type(content_type: str | None) -> None:
    """Refuse a body that is neither a picture nor JSON, before it is read."""
    if content_type is not None and "json" not in content_type.lower():
        raise RequestRefusedError(
            "the content type must be application/json or that of a picture, such as image/jpeg,"
            f" got {quoted(content_type)}; change it",
            UNSUPPORTED_MEDIA_TYPE,
        )


def decoded(decoder: DecodePool, data: bytes, longest_side: int) -> ByteArray:
    """Decode uploaded bytes in the guarded process, as intake does: (H, W, 3) uint8.

    `RejectInputError` when they are no picture that could be indexed.
    """
    return decoded_picture(decoder.decode(data, longest_side).png)
