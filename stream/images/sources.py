"""Sources: reading the bytes that an event's URI names, from files, the S3 store or https. The URI is hostile input."""

import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from schemas.errors import RejectInputError, RetryLaterError
from stream.images.https import HttpsReader, https_disabled, uri_for_message

StoreReader = Callable[[str, str, int], bytes]
"""From bucket, key and the most bytes allowed to the bytes of an object."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):")
_FILE = re.compile(r"file:(//(localhost)?(?=/)|(?!//))(?P<path>/[^?#]*)([?#].*)?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LIKE_ADDRESS = re.compile(r"[0-9.]+")
_KEY_BYTES = 1024
# O_NONBLOCK: opening a FIFO without a writer would wait for ever.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class Sources:
    """Where images may be read from; what was not given is refused.

    `roots` None means files anywhere, for a single user's own machine; otherwise only files beneath one of them, links resolved.
    `buckets` are those that may be read: the store's keys may open others, which are nobody's business.
    """

    def __init__(
        self,
        cap_bytes: int,
        roots: Sequence[Path] | None,
        store_reader: StoreReader | None = None,
        https: HttpsReader | None = None,
        buckets: Sequence[str] = (),
    ) -> None:
        self._cap_bytes = cap_bytes
        self._roots = roots
        self._store_reader = store_reader
        self._https = https
        self._buckets = buckets

    def read(self, uri: str) -> bytes:
        """Bytes of a URI, at most `cap_bytes`. `RetryLaterError` when our own store is away.

        `RejectInputError` codes: unsupported-source, outside-roots, outside-buckets, unreadable, too-many-bytes, unavailable, and those
        of `HttpsReader`.
        """
        found = _SCHEME.match(uri)
        scheme = found[1].lower() if found else "none"
        if scheme not in ("file", "s3", "https"):
            message = f"the URI has scheme {scheme!r}, allowed are file, s3 and https; send an address with one of them"
            raise RejectInputError("unsupported-source", message)
        if _CONTROL.search(uri):
            raise RejectInputError(
                "unsupported-source",
                f"{uri_for_message(uri)} has control characters, which no URI may have; percent-encode them",
            )
        if scheme == "file":
            return self._file(uri)
        if scheme == "s3":
            return self._object(uri)
        if self._https is None:
            raise https_disabled()
        try:
            return self._https.read(uri, self._cap_bytes)
        except RetryLaterError as error:
            # One producer's host must not hold up the stream: its images go to the dead letters, which can be replayed.
            raise RejectInputError(
                "unavailable", str(error).replace("try again", "replay its dead letter")
            ) from error

    def _file(self, uri: str) -> bytes:
        path = _local_path(uri)
        try:
            handle = (
                os.open(path, _READ) if self._roots is None else _open_beneath(self._roots, path)
            )
            return _read_regular(handle, path, self._cap_bytes)
        except OSError as error:
            message = f"{_printable(path)} cannot be read: {error.strerror}; check that it exists and may be read"
            raise RejectInputError("unreadable", message) from error
        except ValueError as error:
            raise RejectInputError(
                "unreadable",
                f"{uri_for_message(uri)} does not name a file: {error}; correct the URI",
            ) from error

    def _object(self, uri: str) -> bytes:
        if self._store_reader is None:
            message = "the URI is an s3:// address and no S3 store is configured; set SIGMA_S3_ENDPOINT and its keys"
            raise RejectInputError("unsupported-source", message)
        bucket, key = _bucket_and_key(uri)
        if bucket not in self._buckets:
            message = f"bucket {bucket} is none of those that may be read ({', '.join(self._buckets)}); add it to SIGMA_S3_SOURCE_BUCKETS"
            raise RejectInputError("outside-buckets", message)
        data = self._store_reader(bucket, key, self._cap_bytes)
        if len(data) > self._cap_bytes:
            raise _too_large(f"s3://{bucket}/{key}", len(data), self._cap_bytes)
        return data


def read_source(uri: str, *, cap_bytes: int, roots: Sequence[Path] | None = None) -> bytes:
    """Bytes of a `file://` URI: `Sources` without an S3 store and without https."""
    return Sources(cap_bytes, roots).read(uri)


def _local_path(uri: str) -> Path:
    parts = _FILE.fullmatch(uri)
    if parts is None:
        message = f"{uri_for_message(uri)} is no whole path on this machine, which alone is allowed; write file:///folder/image.jpg"
        raise RejectInputError("unsupported-source", message)
    return Path(unquote(parts["path"], errors="surrogateescape"))


def _open_beneath(roots: Sequence[Path], path: Path) -> int:
    """Opens what `path` leads to, folder by folder and following no link: one put there in the meantime leads nowhere."""
    real = Path(os.path.realpath(path))
    root = next(
        (root for root in map(Path, map(os.path.realpath, roots)) if real.is_relative_to(root)),
        None,
    )
    if root is None:
        allowed = ", ".join(map(_printable, roots)) or "none"
        message = f"{_printable(path)} is outside the folders that may be read ({allowed}); move it or add to SIGMA_SOURCE_ROOTS"
        raise RejectInputError("outside-roots", message)
    *folders, name = real.relative_to(root).parts or (".",)
    at = os.open(root, _PASS)
    try:
        for folder in folders:
            below = os.open(folder, _PASS | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


def _read_regular(handle: int, path: Path, cap_bytes: int) -> bytes:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        message = f"{_printable(path)} is a folder, a pipe or a device; only regular files can be ingested"
        raise RejectInputError("unreadable", message)
    with os.fdopen(handle, "rb") as file:
        data = file.read(cap_bytes + 1)
    if len(data) > cap_bytes:
        raise _too_large(_printable(path), max(found.st_size, len(data)), cap_bytes)
    return data


def _bucket_and_key(uri: str) -> tuple[str, str]:
    """The parts of an `s3://bucket/key`, the key as it is written: nothing in it is percent-decoded."""
    bucket, _, key = uri[len("s3:") :].removeprefix("//").partition("/")
    if (
        not uri[len("s3:") :].startswith("//")
        or not _BUCKET.fullmatch(bucket)
        or ".." in bucket
        or _LIKE_ADDRESS.fullmatch(bucket)
    ):
        message = "the s3:// address has no bucket name of 3 to 63 small letters, digits, dots and hyphens; write s3://bucket/key"
        raise RejectInputError("unsupported-source", message)
    odd = any(mark in key for mark in "?#\\") or any(
        unquote(part) in (".", "..") for part in re.split("/|%2[fF]", key)
    )
    if not key or odd or len(key.encode(errors="surrogatepass")) > _KEY_BYTES:
        message = f"the key in bucket {bucket} is empty, too long, or has a query, a backslash or dots that climb; write s3://bucket/key"
        raise RejectInputError("unsupported-source", message)
    return bucket, key


def _too_large(what: str, size: int, cap_bytes: int) -> RejectInputError:
    message = f"{what} has {size:,} bytes, allowed are {cap_bytes:,}; shrink it or raise SIGMA_MAX_IMAGE_BYTES"
    return RejectInputError("too-many-bytes", message)


def _printable(path: Path) -> str:
    """A path fit for a message: names need not be text."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path)[:200])
