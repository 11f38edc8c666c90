"""The page: what a person sees in a browser, served with all it needs."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from fastapi import APIRouter, Request, Response

from workers.api.addresses import PAGE_FILE_PATH, PAGE_PATH
from workers.api.answers import NOT_FOUND
from workers.api.json_body import RequestRefusedError

_FIRST: Final = "index.html"

# Content types of the page's files, by the end of their names.
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

_HEADERS: Final = {
    # Scripts and styles are files of ours, pictures come through this service, and so does all that
    # is asked. Whatever else a text of somebody may get into the page does nothing.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Asked for each time and told that nothing has changed: a new version is seen at once.
    "cache-control": "no-cache",
}

_NOT_MODIFIED = 304


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page as it is sent."""

    data: bytes
    media_type: str
    tag: str


def page_files() -> dict[str, PageFile]:
    """Read the files of the page, by name."""
    files = {}
    for file in resources.files("workers.page").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            data = file.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            files[file.name] = PageFile(data, media_type, tag)
    return files


def page_router() -> APIRouter:
    """The addresses of the page. They tell nothing of the images, so they need no key."""
    router = APIRouter()
    files = page_files()

    def sent(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise RequestRefusedError("the page has no such file; open /", NOT_FOUND)
        headers = _HEADERS | {"etag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=_NOT_MODIFIED, headers=headers)
        return Response(file.data, media_type=file.media_type, headers=headers)

    @router.get(PAGE_PATH, include_in_schema=False)
    async def first(request: Request) -> Response:
        return sent(request, _FIRST)

    @router.get(PAGE_FILE_PATH, include_in_schema=False)
    async def further(request: Request, name: str) -> Response:
        return sent(request, name)

    return router
