"""The operations: what is asked for and how its answers are read, without a connection.

Each is a generator that yields calls, is sent their replies, and returns the result. So the
blocking and the asynchronous client share all of it.
"""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sigma_stream_client.errors import RefusedError, UnavailableError
from sigma_stream_client.records import (
    Answer,
    DeadLetter,
    ImagePage,
    MetadataValue,
    StoredImage,
    WrittenImage,
)

T = TypeVar("T")

_ACCEPTED = 202

_NOT_READY = 503

# Content types by the first bytes of a file; the service looks at the bytes whatever is said.
_TYPES = ((b"\xff\xd8", "image/jpeg"), (b"\x89PNG", "image/png"), (b"RIFF", "image/webp"))
_OTHER_TYPE = "application/octet-stream"

Filter = Mapping[str, Any]
Metadata = Mapping[str, MetadataValue]
Picture = bytes | Path


@dataclass(frozen=True, slots=True)
class Call:
    """One request. All of ours may be sent twice: the second time changes nothing more."""

    method: str
    path: str
    parameters: Sequence[tuple[str, str]] = ()
    body: Any = None
    """JSON; or, with a content type, bytes."""
    content_type: str | None = None
    replies: frozenset[int] = frozenset()
    """Statuses that are answers to it, although they are refusals elsewhere."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A good answer."""

    status: int
    document: Any


Operation = Generator[Call, Reply, T]


def query(
    subject: Mapping[str, str],
    k: int,
    filter: Filter | None,
    generation: int | None,
    explain: bool,
    mode: str = "fused",
    min_relevance: float | None = None,
) -> Operation[Answer]:
    """The best images for a text (`query`) or a stored image (`image_id`)."""
    body = {**subject, "k": k, "explain": explain, "mode": mode}
    if filter is not None:
        body["filter"] = filter
    if min_relevance is not None:
        body["min_relevance"] = min_relevance
    if generation is not None:
        body["generation"] = generation
    reply = yield Call("POST", "/v1/query", body=body)
    return Answer.from_json(reply.document)


def query_by_picture(
    picture: Picture, k: int, filter: Filter | None, generation: int | None, explain: bool
) -> Operation[Answer]:
    """The best images for a picture that is not stored."""
    parameters = [("k", str(k)), ("explain", str(explain).lower())]
    if filter is not None:
        parameters.append(("filter", _json("filter", filter)))
    if generation is not None:
        parameters.append(("generation", str(generation)))
    data, content_type = _read(picture)
    reply = yield Call("POST", "/v1/query", parameters, data, content_type)
    return Answer.from_json(reply.document)


def next_page(cursor: str) -> Operation[Answer]:
    """The next page of an answer."""
    reply = yield Call("POST", "/v1/query", body={"cursor": cursor})
    return Answer.from_json(reply.document)


def put_picture(
    image_id: str,
    picture: Picture,
    captions: Sequence[str],
    metadata: Metadata | None,
    version: int | None,
    wait_s: float,
) -> Operation[WrittenImage]:
    """Publish an image with its bytes."""
    parameters = [("caption", caption) for caption in _several(captions)]
    if metadata:
        parameters.append(("metadata", _json("metadata", metadata)))
    if version is not None:
        parameters.append(("version", str(version)))
    data, content_type = _read(picture)
    call = Call("PUT", image_path(image_id), parameters, data, content_type)
    return (yield from _put(call, wait_s))


def put_address(
    image_id: str,
    uri: str,
    captions: Sequence[str],
    metadata: Metadata | None,
    version: int | None,
    wait_s: float,
) -> Operation[WrittenImage]:
    """Publish an image that lies at an address."""
    body: dict[str, Any] = {"uri": uri, "captions": _several(captions), "metadata": metadata or {}}
    if version is not None:
        body["version"] = version
    return (yield from _put(Call("PUT", image_path(image_id), body=body), wait_s))


def _put(call: Call, wait_s: float) -> Operation[WrittenImage]:
    reply = yield call
    written = WrittenImage.from_json(reply.document)
    if not wait_s:
        return written
    return (yield from wait_searchable(written, wait_s))


def wait_searchable(written: WrittenImage, wait_s: float) -> Operation[WrittenImage]:
    """Wait until answers contain what was put; the service itself waits for some seconds a call."""
    deadline = time.monotonic() + wait_s
    parameters = [("wait", "searchable"), ("token", written.token)]
    while True:
        reply = yield Call("GET", image_path(written.image_id), parameters)
        if reply.status != _ACCEPTED:
            return WrittenImage(written.image_id, written.version, True, written.token)
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{written.image_id} was published and is not searchable after {wait_s:g} s;"
                " see that intake and index workers run, then wait again"
            )


def get(image_id: str) -> Operation[StoredImage]:
    """What is stored of an image."""
    reply = yield Call("GET", image_path(image_id))
    return StoredImage.from_json(reply.document)


def delete(image_id: str) -> Operation[bool]:
    """Delete an image; whether there was one."""
    reply = yield Call("DELETE", image_path(image_id))
    return bool(reply.document["deleted"])


def images(cursor: str | None, limit: int, newest: bool) -> Operation[ImagePage]:
    """A page of images in the order of their ids, or the newest first."""
    parameters = [("limit", str(limit))]
    if newest:
        # Else left out: services of earlier versions refuse what they do not know.
        parameters.append(("order", "newest"))
    if cursor is not None:
        parameters.append(("cursor", cursor))
    reply = yield Call("GET", "/v1/images", parameters)
    return ImagePage.from_json(reply.document)


def dead_letters(limit: int) -> Operation[tuple[DeadLetter, ...]]:
    """Events that could not be used, newest first."""
    reply = yield Call("GET", "/v1/dead-letters", [("limit", str(limit))])
    return tuple(DeadLetter.from_json(letter) for letter in reply.document["dead_letters"])


def replay() -> Operation[int]:
    """Publish again what is still refused; how many events that were."""
    reply = yield Call("POST", "/v1/dead-letters/replay")
    return int(reply.document["replayed"])


def problem() -> Operation[str | None]:
    """Why queries cannot be answered now."""
    reply = yield Call("GET", "/readyz", replies=frozenset({_NOT_READY}))
    if reply.status != _NOT_READY:
        return None
    # A proxy that finds no worker has an error instead.
    found = reply.document.get("problem") or reply.document.get("error")
    return str(found or "it does not say why")


def image_path(image_id: str) -> str:
    """The path of an image; a slash in its id is no border of the address."""
    if image_id in ("", ".", ".."):
        # In an address they are nothing, or a step.
        raise RefusedError(f'the image id must not be empty, . or .., got "{image_id}"')
    try:
        return f"/v1/images/{quote(image_id, safe='')}"
    except UnicodeEncodeError:
        raise RefusedError(
            f"the image id must be Unicode without halves of surrogate pairs, got {image_id!a}"
        ) from None


def _several(captions: Sequence[str]) -> list[str]:
    """Captions as a list; a text alone would be as many of them as it has letters."""
    if isinstance(captions, str):
        raise RefusedError(f"captions must be a list of texts, got the text {captions[:80]!r}")
    return list(captions)


def _json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{name} must be what JSON can hold: {error}; correct it") from error


def _read(picture: Picture) -> tuple[bytes, str]:
    if not isinstance(picture, bytes | Path):
        kind = type(picture).__name__
        raise RefusedError(f"a picture must be its bytes or a pathlib.Path to it, got {kind}")
    data = picture.read_bytes() if isinstance(picture, Path) else picture
    content_type = next((name for start, name in _TYPES if data.startswith(start)), _OTHER_TYPE)
    return data, content_type
