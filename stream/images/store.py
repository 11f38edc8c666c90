"""The image store: normalised images under the hash of their content."""

import hashlib
import os
import re
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from schemas.errors import RejectInputError, RetryLaterError, UsageError

STORE_SCHEME = "store"

# What the names of uploads end in that are kept as they arrived, in a folder.
UPLOAD_SUFFIX = ".upload"

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{62}\.[a-z0-9]{1,8}")

# Readable for a web server that runs as another user; temporary files start as private.
_FILE_MODE = 0o644


class ImageStore(Protocol):
    """Bytes by content: the same bytes always have the same URI, so storing twice is harmless."""

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """Store bytes and return their URI; `RetryLaterError` when the store cannot take them."""

    def get(self, uri: str) -> bytes:
        """Return the bytes of a URI; `RejectInputError` with code `unreadable` without any."""

    def exists(self, uri: str) -> bool:
        """Whether there are bytes under the URI."""

    def link(self, uri: str) -> str:
        """Return an address from which whoever asked can fetch the bytes."""

    def remove(self, uri: str, unused_since: datetime) -> bool:
        """Remove bytes unless they were put again since then; return whether they are gone."""


class LocalImageStore:
    """`ImageStore` in a folder: the SHA-256 `abcdef…` is the file `ab/cdef….png`.

    URIs (`store:///ab/cdef….png`) are relative to the folder, so that it can be moved.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._root_uri = self._root.as_uri()

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """See `ImageStore`. Readers see the whole file or none."""
        name = content_name(data, suffix)
        target = self._root / name
        try:
            # Read again: who stores an image anew may do so because the store damaged it.
            if not _touched(target) or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(target, data)
        except OSError as error:
            raise RetryLaterError(
                f"the image store cannot write {target}: {error.strerror}; "
                "make room or correct the permissions"
            ) from error
        return store_uri(name)

    def get(self, uri: str) -> bytes:
        """See `ImageStore`. The bytes are checked against the hash in their name."""
        try:
            data = self.path(uri).read_bytes()
        except OSError as error:
            raise RejectInputError(
                "unreadable",
                f"the image store cannot read {uri}: {error.strerror}; ingest the image again",
            ) from error
        return checked_content(uri, data)

    def exists(self, uri: str) -> bool:
        """See `ImageStore`."""
        return self.path(uri).is_file()

    def link(self, uri: str) -> str:
        """See `ImageStore`: a `file://` address on this machine."""
        # Nothing is read here, so no link in the folder is followed: for ten images of each answer
        # that would take as long as a tenth of the search.
        return f"{self._root_uri}/{parse_store_uri(uri)}"

    def remove(self, uri: str, unused_since: datetime) -> bool:
        """See `ImageStore`."""
        path = self.path(uri)
        aside = path.with_name(f".gone-{path.name}")
        try:
            # Aside first: who puts the same bytes from here on writes them anew.
            path.replace(aside)
            if aside.stat().st_mtime > unused_since.timestamp():
                aside.replace(path)
                return False
            aside.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            raise RetryLaterError(
                f"the image store cannot remove {path}: {error.strerror}; correct the permissions"
            ) from error
        return True

    def path(self, uri: str) -> Path:
        """Return the file of a URI; refuses what is outside the folder, links resolved."""
        path = (self._root / parse_store_uri(uri)).resolve()
        # The name's form rules out dots, but not a link that somebody put into the folder.
        if not path.is_relative_to(self._root):
            raise RejectInputError(
                "outside-store",
                f"the URI must be of the image store {self._root}, got {uri}; "
                "use a URI that the store gave",
            )
        return path


def content_name(data: bytes, suffix: str) -> str:
    """Return the name of bytes: their SHA-256, split so that no folder grows large."""
    # The suffix is a part of a path: ../../evil must not be one.
    if not _SUFFIX.fullmatch(suffix):
        raise UsageError(
            "a suffix must be a dot and up to eight small letters or digits, "
            f"got {suffix!r}; use one such as .png"
        )
    digest = hashlib.sha256(data).hexdigest()
    return f"{digest[:2]}/{digest[2:]}{suffix}"


def checked_content(uri: str, data: bytes) -> bytes:
    """Return the bytes of a URI; `RejectInputError` when they are not those that its name says.

    A PNG with a flipped byte can still be decoded, to another picture.
    """
    name = parse_store_uri(uri)
    if content_name(data, name[name.index(".") :]) != name:
        raise RejectInputError(
            "damaged-store",
            f"the stored image {uri} must have the hash in its name, got other bytes; "
            "ingest the image again",
        )
    return data


def store_uri(name: str) -> str:
    """Return the URI of a name that `content_name` gave."""
    return f"{STORE_SCHEME}:///{name}"


def parse_store_uri(uri: str) -> str:
    """Return the name in a `store:///` URI; refuses anything that the store did not give."""
    parts = urlsplit(uri)
    name = parts.path.lstrip("/")
    bare = not parts.netloc and not parts.query
    if parts.scheme != STORE_SCHEME or not bare or not _NAME.fullmatch(name):
        raise RejectInputError(
            "outside-store",
            f"the URI must be an address of the image store, got {uri[:200]}; "
            "use a URI that the store gave",
        )
    return name


def _touched(target: Path) -> bool:
    """Date a file by its newest use, so that it is not removed now; False if there is none."""
    try:
        os.utime(target)
    except FileNotFoundError:
        return False
    return True


def _write_whole(target: Path, data: bytes) -> None:
    """Write a file aside, then rename it, so that no reader and no crash meets half a file."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # Before the rename: after a power cut the name could exist without its content.
            os.fsync(file.fileno())
        aside.chmod(_FILE_MODE)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
