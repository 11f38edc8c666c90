"""Private files: what a backup is written with. Only its owner may read captions and pictures."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from schemas.errors import WorkFailedError

FOLDER_MODE = 0o700
FILE_MODE = 0o600

# Bytes that are read at a time: large enough for a disk, small enough for any memory.
PIECE_BYTES = 1 << 20

# No room on the disk, none left of a quota, and beyond the largest file that is allowed.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DigestedFile:
    """A file that is being written, its size and SHA-256 known at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, piece: "bytes | bytearray | memoryview") -> None:
        """Append bytes."""
        self._file.write(piece)
        self._digest.update(piece)
        self.bytes += len(piece)

    @property
    def sha256(self) -> str:
        """Of what was written until now, in hexadecimal."""
        return self._digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Create a folder and those above it that are missing, private ones."""
    if not folder.is_dir():
        # One by one: `parents` of mkdir gives the missing ones the default mode.
        make_folder(folder.parent)
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


@contextmanager
def new_file(path: Path) -> Iterator[DigestedFile]:
    """Write a private file anew, in place of one that an unfinished backup has left."""
    make_folder(path.parent)
    # Not over an old one, which may be linked to a file of another backup.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        yield DigestedFile(file)


def write_whole(path: Path, data: bytes) -> None:
    """Write a private file that is whole or not there, after a power cut too."""
    aside = path.with_name(f".new-{path.name}")
    try:
        with new_file(aside) as file:
            file.write(data)
        _flush(aside)
        aside.replace(path)
        _flush(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def pieces_of(path: Path) -> Iterator[bytes]:
    """Read a file piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@contextmanager
def told_when_full(what: str) -> Iterator[None]:
    """Turn a full or failing disk into one sentence; `what` is the subject, such as the backup."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and error.errno not in _FULL:
            raise
        raise WorkFailedError(
            f"{what} could not be written ({error.strerror}); make room and run the same command"
            " again, which goes on with what is there"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
