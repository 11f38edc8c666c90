"""Sources: reading the bytes that an event's URI names. Only `file://` today; the path is hostile input."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schemas.errors import RejectInputError


def read_source(uri: str, *, cap_bytes: int, roots: Sequence[Path] | None = None) -> bytes:
    """Bytes of a URI, at most `cap_bytes`. With `roots`, only files beneath one of them, links resolved.

    `RejectInputError` codes: unsupported-source, outside-roots, unreadable, too-many-bytes.
    """
    path = _local_path(uri)
    if roots is not None and not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise RejectInputError("outside-roots", f"{uri} is outside the folders that may be read ({allowed}); move it there")
    try:
        return _read_regular(path, cap_bytes)
    except OSError as error:
        raise RejectInputError("unreadable", f"{path} cannot be read: {error.strerror}; check that it exists and may be read") from error
    except ValueError as error:
        raise RejectInputError("unreadable", f"{uri} does not name a file: {error}; correct the URI") from error


def _local_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise RejectInputError(
            "unsupported-source", f"{uri[:200]} has scheme {parts.scheme or 'none'!r}; only file:// URIs of this machine can be read"
        )
    return Path(unquote(parts.path, errors="surrogateescape"))


def _read_regular(path: Path, cap_bytes: int) -> bytes:
    # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise RejectInputError("unreadable", f"{path} is a folder, a pipe or a device; only regular files can be ingested")
        data = file.read(cap_bytes + 1)
    if len(data) > cap_bytes:
        size = max(found.st_size, len(data))
        raise RejectInputError(
            "too-many-bytes", f"{path} has {size:,} bytes, allowed are {cap_bytes:,}; shrink it or raise SIGMA_MAX_IMAGE_BYTES"
        )
    return data
