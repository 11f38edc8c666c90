"""The image store: normalised images under the hash of their content."""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from schemas.errors import RejectInputError, RetryLaterError, UsageError

_SCHEME = "store"
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{62}\.[a-z0-9]{1,8}")


class ImageStore(Protocol):
    """Bytes by content: the same bytes always have the same URI, so storing twice is harmless."""

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """Stores bytes and returns their URI. `RetryLaterError` when the store is away or full."""

    def get(self, uri: str) -> bytes:
        """The bytes of a URI; `RejectInputError` with code `unreadable` when there are none."""

    def exists(self, uri: str) -> bool:
        """Whether there are bytes under the URI."""

    def link(self, uri: str) -> str:
        """An address where whoever asked can fetch the bytes."""


class LocalImageStore:
    """A folder, two levels deep so that no folder grows large: `store:///ab/cdef….png` for the SHA-256 `abcdef…`.

    URIs are relative to the folder, so that it can be moved.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """See `ImageStore`. Readers see the whole file or none: it is written aside, then renamed."""
        name = content_name(data, suffix)
        target = self._root / name
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(target, data)
        except OSError as error:
            raise RetryLaterError(
                f"the image store cannot write {target}: {error.strerror}; make room or fix permissions"
            ) from error
        return f"{_SCHEME}:///{name}"

    def get(self, uri: str) -> bytes:
        """See `ImageStore`."""
        try:
            return self.path(uri).read_bytes()
        except OSError as error:
            raise RejectInputError(
                "unreadable",
                f"the image store cannot read {uri}: {error.strerror}; ingest the image again",
            ) from error

    def exists(self, uri: str) -> bool:
        """See `ImageStore`."""
        return self.path(uri).is_file()

    def link(self, uri: str) -> str:
        """See `ImageStore`: a `file://` address on this machine."""
        return self.path(uri).as_uri()

    def path(self, uri: str) -> Path:
        """The file of a URI. Refuses what leads out of the folder, links included."""
        path = (self._root / parse_uri(uri)).resolve()
        if not path.is_relative_to(self._root):
            raise RejectInputError(
                "outside-store",
                f"{uri} is not in the image store {self._root}; use a URI that the store gave",
            )
        return path


def content_name(data: bytes, suffix: str) -> str:
    """Where bytes are kept: their SHA-256, split so that no folder grows large."""
    if not _SUFFIX.fullmatch(suffix):
        raise UsageError(
            f"suffix {suffix!r} is not a dot and up to eight small letters or digits, such as .png"
        )
    digest = hashlib.sha256(data).hexdigest()
    return f"{digest[:2]}/{digest[2:]}{suffix}"


def parse_uri(uri: str) -> str:
    """The name in a `store:///` URI; refuses anything that the store did not give."""
    parts = urlsplit(uri)
    name = parts.path.lstrip("/")
    if parts.scheme != _SCHEME or parts.netloc or parts.query or not _NAME.fullmatch(name):
        raise RejectInputError(
            "outside-store",
            f"{uri[:200]} is no address of the image store; use a URI that the store gave",
        )
    return name


def _write_whole(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o644)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
