"""Sources: the bytes that an event's URI names, from files, the S3 store or https.

The URI is hostile input: whoever may send an arrival must not read the worker's own files, the
buckets that its keys happen to open, or its network.
"""

import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from schemas.errors import RejectInputError, RetryLaterError
from stream.images.https import HttpsReader, https_disabled
from stream.images.redaction import printable, uri_for_message
from stream.images.store import STORE_SCHEME

# From bucket, key and the most bytes allowed to the bytes of an object.
StoreReader = Callable[[str, str, int], bytes]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):")
_FILE = re.compile(r"file:(//(localhost)?(?=/)|(?!//))(?P<path>/[^?#]*)([?#].*)?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# What S3 allows.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LIKE_ADDRESS = re.compile(r"[0-9.]+")
_KEY_SEPARATOR = re.compile("/|%2[fF]")
_MAX_KEY_BYTES = 1024

# O_NONBLOCK: opening a FIFO without a writer would wait for ever.
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# O_PATH passes through a folder without the right to list it; it is not on all systems.
_FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class Sources:
    """Where images may be read from; what is not allowed here is refused.

    `roots` None allows files anywhere, for a single user's own machine; otherwise files must be
    beneath one of the roots, with links resolved. `buckets` are those that may be read: the store's
    keys may open others, which a producer has no right to.
    """

    def __init__(
        self,
        cap_bytes: int,
        roots: Sequence[Path] | None,
        store_reader: StoreReader | None = None,
        https: HttpsReader | None = None,
        buckets: Sequence[str] = (),
        store: Callable[[str], bytes] | None = None,
    ) -> None:
        """`store` reads addresses that a store in a folder gave, of pictures that were uploaded."""
        self._cap_bytes = cap_bytes
        self._roots = roots
        self._store_reader = store_reader
        self._https = https
        self._buckets = buckets
        self._store = store

    def read(self, uri: str) -> bytes:
        """Return the bytes of a URI, at most `cap_bytes`.

        Raises `RetryLaterError` when our own store is unavailable, and `RejectInputError` with the
        codes unsupported-source, outside-roots, outside-buckets, unreadable, too-many-bytes,
        unavailable, and those of `HttpsReader.read`.
        """
        match = _SCHEME.match(uri)
        scheme = match[1].lower() if match else "none"
        if scheme == STORE_SCHEME and self._store is not None:
            return self._store(uri)
        if scheme not in ("file", "s3", "https"):
            raise RejectInputError(
                "unsupported-source",
                f"the URI must have the scheme file, s3 or https, got {scheme!r}; "
                "send an address with one of them",
            )
        # Before all parsing: some parsers drop tabs and line ends, others take them as ends.
        if _CONTROL.search(uri):
            raise RejectInputError(
                "unsupported-source",
                f"a URI must not have control characters, got {uri_for_message(uri)}; "
                "percent-encode them",
            )
        if scheme == "file":
            return self._read_file(uri)
        if scheme == "s3":
            return self._read_object(uri)
        return self._read_https(uri)

    def _read_file(self, uri: str) -> bytes:
        path = _local_path(uri)
        try:
            if self._roots is None:
                handle = os.open(path, _READ_FLAGS)
            else:
                handle = _open_beneath(self._roots, path)
            return _read_regular(handle, path, self._cap_bytes)
        except OSError as error:
            raise RejectInputError(
                "unreadable",
                f"{printable(str(path))} cannot be read: {error.strerror}; "
                "check that it exists and may be read",
            ) from error
        # A NUL in the path, percent-encoded in the URI.
        except ValueError as error:
            raise RejectInputError(
                "unreadable",
                f"the URI must name a file, got {uri_for_message(uri)} ({error}); correct the URI",
            ) from error

    def _read_object(self, uri: str) -> bytes:
        if self._store_reader is None:
            raise RejectInputError(
                "unsupported-source",
                "an s3:// URI needs an S3 store, and none is configured; "
                "set SIGMA_S3_ENDPOINT and its keys",
            )
        bucket, key = _bucket_and_key(uri)
        if bucket not in self._buckets:
            allowed = ", ".join(self._buckets) or "none"
            raise RejectInputError(
                "outside-buckets",
                f"the bucket must be one of those that may be read ({allowed}), got {bucket}; "
                "add it to SIGMA_S3_SOURCE_BUCKETS",
            )
        data = self._store_reader(bucket, key, self._cap_bytes)
        if len(data) > self._cap_bytes:
            raise _too_large(f"s3://{bucket}/{key}", len(data), self._cap_bytes)
        return data

    def _read_https(self, uri: str) -> bytes:
        if self._https is None:
            raise https_disabled()
        try:
            return self._https.read(uri, self._cap_bytes)
        except RetryLaterError as error:
            # Waiting for one producer's host would let it stop the whole stream. Its images become
            # dead letters, which can be replayed.
            message = str(error).replace("try again", "replay its dead letter")
            raise RejectInputError("unavailable", message) from error


def read_source(uri: str, *, cap_bytes: int, roots: Sequence[Path] | None = None) -> bytes:
    """Return the bytes of a `file://` URI: `Sources` without an S3 store and without https."""
    return Sources(cap_bytes, roots).read(uri)


def _local_path(uri: str) -> Path:
    parts = _FILE.fullmatch(uri)
    if parts is None:
        raise RejectInputError(
            "unsupported-source",
            f"a file URI must be a whole path on this machine, got {uri_for_message(uri)}; "
            "write file:///folder/image.jpg",
        )
    # File names need not be UTF-8.
    return Path(unquote(parts["path"], errors="surrogateescape"))


def _open_beneath(roots: Sequence[Path], path: Path) -> int:
    """Open a file that is, with all links resolved, beneath one of the roots.

    Between that check and the opening, somebody who may write there could put a link in place. So
    the resolved path is opened folder by folder, following no link.
    """
    real = Path(os.path.realpath(path))
    root = _root_of(roots, real)
    if root is None:
        allowed = ", ".join(printable(str(root)) for root in roots) or "none"
        raise RejectInputError(
            "outside-roots",
            f"the file must be in a folder that may be read ({allowed}), got "
            f"{printable(str(path))}; move it or add its folder to SIGMA_SOURCE_ROOTS",
        )
    *folders, name = real.relative_to(root).parts or (".",)
    folder_handle = os.open(root, _FOLDER_FLAGS)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder_handle)
            os.close(folder_handle)
            folder_handle = below
        return os.open(name, _READ_FLAGS | os.O_NOFOLLOW, dir_fd=folder_handle)
    finally:
        os.close(folder_handle)


def _root_of(roots: Sequence[Path], real: Path) -> Path | None:
    """Return the root, with links resolved, that a resolved path is beneath."""
    for root in roots:
        resolved = Path(os.path.realpath(root))
        # Not by text: /root-other begins with /root.
        if real.is_relative_to(resolved):
            return resolved
    return None


def _read_regular(handle: int, path: Path, cap_bytes: int) -> bytes:
    """Read and close an open file that must be a regular one: a device can be endless."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise RejectInputError(
            "unreadable",
            f"the source must be a regular file, got {printable(str(path))}, which is a folder, "
            "a pipe or a device; send a file",
        )
    with os.fdopen(handle, "rb") as file:
        # One byte more than allowed: the file may have grown, so its size is not trusted.
        data = file.read(cap_bytes + 1)
    if len(data) > cap_bytes:
        raise _too_large(printable(str(path)), max(status.st_size, len(data)), cap_bytes)
    return data


def _bucket_and_key(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key`; the key is taken as written, nothing in it is percent-decoded."""
    address = uri[len("s3:") :]
    bucket, _, key = address.removeprefix("//").partition("/")
    if not address.startswith("//") or not _is_bucket(bucket):
        raise RejectInputError(
            "unsupported-source",
            "an s3:// URI must name a bucket of 3 to 63 small letters, digits, dots and hyphens, "
            "got none; write s3://bucket/key",
        )
    if not _is_key(key):
        raise RejectInputError(
            "unsupported-source",
            f"a key must have 1 to {_MAX_KEY_BYTES:,} bytes and no query, backslash or dots that "
            f"climb, got another one in bucket {bucket}; write s3://bucket/key",
        )
    return bucket, key


def _is_bucket(name: str) -> bool:
    if ".." in name or _LIKE_ADDRESS.fullmatch(name):
        return False
    return _BUCKET.fullmatch(name) is not None


def _is_key(key: str) -> bool:
    if not key or len(key.encode(errors="surrogatepass")) > _MAX_KEY_BYTES:
        return False
    if any(mark in key for mark in "?#\\"):
        return False
    # A proxy or the server may resolve dots, encoded or not, and so leave the bucket.
    parts = [unquote(part) for part in _KEY_SEPARATOR.split(key)]
    return not any(part in (".", "..") for part in parts)


def _too_large(name: str, size: int, cap_bytes: int) -> RejectInputError:
    return RejectInputError(
        "too-many-bytes",
        f"{name} must have at most {cap_bytes:,} bytes (SIGMA_MAX_IMAGE_BYTES={cap_bytes}), "
        f"got {size:,}; shrink it or raise it",
    )
