"""The image store: normalised images under the hash of their content."""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from schemas.errors import RejectInputError, RetryLaterError, UsageError

_SCHEME = "store"
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


class ImageStore(Protocol):
    """Bytes by content: the same bytes always have the same URI, so storing twice is harmless."""

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """Stores bytes and returns their URI. `RetryLaterError` when the store is away or full."""

    def get(self, uri: str) -> bytes:
        """The bytes of a URI; `RejectInputError` with code `unreadable` when there are none."""

    def exists(self, uri: str) -> bool:
        """Whether there are bytes under the URI."""

    def path(self, uri: str) -> Path:
        """A local file with the bytes."""


class LocalImageStore:
    """A folder, two levels deep so that no folder grows large: `store:///ab/cdef….png` for the SHA-256 `abcdef…`.

    URIs are relative to the folder, so that it can be moved.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """See `ImageStore`. Readers see the whole file or none: it is written aside, then renamed."""
        if not _SUFFIX.fullmatch(suffix):
            raise UsageError(f"suffix {suffix!r} is not a dot and up to eight small letters or digits, such as .png")
        digest = hashlib.sha256(data).hexdigest()
        target = self._root / digest[:2] / f"{digest[2:]}{suffix}"
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(target, data)
        except OSError as error:
            raise RetryLaterError(f"the image store cannot write {target}: {error.strerror}; make room or fix permissions") from error
        return f"{_SCHEME}:///{digest[:2]}/{digest[2:]}{suffix}"

    def get(self, uri: str) -> bytes:
        """See `ImageStore`."""
        try:
            return self.path(uri).read_bytes()
        except OSError as error:
            raise RejectInputError("unreadable", f"the image store cannot read {uri}: {error.strerror}; ingest the image again") from error

    def exists(self, uri: str) -> bool:
        """See `ImageStore`."""
        return self.path(uri).is_file()

    def path(self, uri: str) -> Path:
        """See `ImageStore`. Refuses what leads out of the folder, links included."""
        parts = urlsplit(uri)
        path = (self._root / unquote(parts.path).lstrip("/")).resolve() if parts.scheme == _SCHEME and not parts.netloc else None
        if path is None or not path.is_relative_to(self._root):
            raise RejectInputError("outside-store", f"{uri} is not in the image store {self._root}; use a URI that the store gave")
        return path


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
