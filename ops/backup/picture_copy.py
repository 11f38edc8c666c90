"""Picture copies: out of the image store into a backup, and back into whichever store there is.

A picture's name is the SHA-256 of its bytes, in a folder as in S3. So the list of a backup's
pictures needs no digests, and what is copied twice is the same.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

from ops.backup.private_files import FILE_MODE, make_folder
from schemas.errors import RejectInputError, UsageError, WorkFailedError
from stream.images.store import ImageStore, content_name, parse_store_uri, store_uri

# Pictures on their way at the same time: an object store answers several at once.
_THREADS = 8

# Pictures that are begun before the first of them is waited for; bounds the memory.
_CHUNK = 256

_ASIDE = ".new-"


@dataclass(frozen=True, slots=True)
class CopiedPicture:
    """A picture of the list and how many bytes it has; None for one that could not be copied."""

    name: str
    bytes: int | None


class Tick(Protocol):
    """Takes note of progress."""

    def __call__(self, n: int) -> None: ...


def copy_pictures(
    names: Iterable[str], store: ImageStore, folder: Path, older: Path | None
) -> Iterator[CopiedPicture]:
    """Copy pictures into the folder of a backup; yields each, in the order given.

    What is there already is used; so are the pictures of an `older` backup, by a link.
    """

    def copy(name: str) -> CopiedPicture:
        target = folder / name
        known = _size_if_whole(target, name)
        if known is None and older is not None:
            known = _linked(older / name, target, name)
        if known is None:
            known = _fetched(store, target, name)
        return CopiedPicture(name, known)

    with ThreadPoolExecutor(_THREADS, "pictures") as threads:
        remaining = iter(names)
        while chunk := list(islice(remaining, _CHUNK)):
            yield from threads.map(copy, chunk)


def load_pictures(names: Iterable[str], folder: Path, store: ImageStore, tick: Tick) -> None:
    """Put the pictures of a backup into the image store. Those that are there are left alone."""

    def load(name: str) -> None:
        path = folder / name
        suffix = name[name.index(".") :]
        if store.put(path.read_bytes(), suffix) != store_uri(name):
            raise WorkFailedError(
                f"{path} changed while it was restored; check the backup with --check, then run"
                " the same command again"
            )

    with ThreadPoolExecutor(_THREADS, "pictures") as threads:
        remaining = iter(names)
        while chunk := list(islice(remaining, _CHUNK)):
            for _ in threads.map(load, chunk):
                tick(1)


def picture_name(uri: str) -> str | None:
    """The name of a picture in the store; None for an address that no store gave."""
    try:
        return parse_store_uri(uri)
    except RejectInputError:
        return None


def picture_line(name: str, size: int) -> bytes:
    """A line of the list of pictures."""
    return f"{size} {name}\n".encode()


def listed_pictures(file: Path) -> Iterator[CopiedPicture]:
    """Read the list of pictures; `UsageError` when it is none."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            size, _, name = line.rstrip("\n").partition(" ")
            if not size.isdigit() or picture_name(store_uri(name)) is None:
                raise UsageError(f"{file} must list pictures, got {line[:100]!r}")
            yield CopiedPicture(name, int(size))


def check_pictures(listed: Iterable[CopiedPicture], folder: Path, tick: Tick) -> None:
    """Read every picture of a list; `UsageError` names one that is not what was written.

    Also one too many. The list is ordered by name, so that one folder's names are in memory.
    """
    seen: set[str] = set()
    for shard, pictures in groupby(listed, key=lambda picture: picture.name[:2]):
        seen.add(shard)
        names = set()
        for picture in pictures:
            names.add(picture.name)
            _check_picture(folder / picture.name, picture)
            tick(1)
        _refuse_extra(folder / shard, {name[3:] for name in names})
    if folder.exists():
        _refuse_extra(folder, seen)


def remove_unlisted(listed: Iterable[CopiedPicture], folder: Path) -> None:
    """Take away what an unfinished backup left and this one does not list."""
    shards: set[str] = set()
    for shard, pictures in groupby(listed, key=lambda picture: picture.name[:2]):
        shards.add(shard)
        names = {picture.name[3:] for picture in pictures}
        for path in (folder / shard).iterdir():
            if path.name not in names:
                path.unlink()
    for path in folder.iterdir() if folder.exists() else ():
        if path.name not in shards:
            for left in path.iterdir():
                left.unlink()
            path.rmdir()


def _check_picture(path: Path, picture: CopiedPicture) -> None:
    if path.is_symlink() or not path.is_file():
        raise UsageError(f"{path} is missing; take another copy of this backup")
    size = path.stat().st_size
    if size != picture.bytes:
        raise UsageError(
            f"{path} must have {picture.bytes:,} bytes, got {size:,}; take another copy of this"
            " backup"
        )
    if _size_if_whole(path, picture.name) is None:
        raise UsageError(
            f"{path} cannot be read as it was written: it was damaged or exchanged; take another"
            " copy of this backup"
        )


def _refuse_extra(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            raise UsageError(f"{path} does not belong to this backup; move it away")


def _size_if_whole(path: Path, name: str) -> int | None:
    """The size of a picture that is there and is what its name says."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return len(data) if _is_of(data, name) else None


def _is_of(data: bytes, name: str) -> bool:
    return content_name(data, name[name.index(".") :]) == name


def _linked(source: Path, target: Path, name: str) -> int | None:
    size = _size_if_whole(source, name)
    if size is None:
        return None
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or somebody else's file: it is fetched.
        return None
    return size


def _fetched(store: ImageStore, target: Path, name: str) -> int | None:
    try:
        data = store.get(store_uri(name))
    except RejectInputError:
        return None
    if not _is_of(data, name):
        return None
    make_folder(target.parent)
    aside = target.with_name(f"{_ASIDE}{target.name}")
    with suppress(FileNotFoundError):
        aside.unlink()
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    # Whole or not there. It is not flushed here: all are, before the manifest is written.
    aside.replace(target)
    return len(data)
