"""The backup writer: puts the parts of an installation into the folder of a backup, one by one.

It remembers what the manifest must say of them.
"""

import heapq
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from model.network.file_digests import digest_of, recorded_digests
from model.progress import Progress
from ops.backup.backup_manifest import (
    GENERATIONS,
    PICTURE_LIST,
    PICTURES,
    TABLES,
    UNREAD,
    BackupFile,
)
from ops.backup.picture_copy import (
    copy_pictures,
    listed_pictures,
    picture_line,
    picture_name,
    remove_unlisted,
)
from ops.backup.private_files import DigestedFile, make_folder, new_file, pieces_of
from ops.backup.waiting_events import (
    accepted_picture,
    event_line,
    outbox_pictures,
    waiting_events,
)
from schemas.named_sql import queries
from stream.images.store import ImageStore, store_uri
from stream.log.event_log import EventLog
from workers.repository.connection import Connection
from workers.repository.erasures import used_pictures
from workers.repository.generations import Generation
from workers.repository.table_copy import StoredTable, copy_out

# The names of the snapshot's pictures, until they are copied.
_WANTED = ".wanted"

# States of generations whose weights somebody may ask for.
_KEPT_STATES = ("shadow", "live", "retired")


class BackupWriter:
    """Writes one backup. Pictures and weights that an `older` backup has become links to it."""

    def __init__(self, folder: Path, older: Path | None, progress: Progress) -> None:
        self.files: dict[str, BackupFile] = {}
        self.rows: dict[str, int] = {}
        self.folders: list[str] = []
        """Of weights."""
        self.unread = 0
        self.pictures = 0
        self.picture_bytes = 0
        self.erased: list[str] = []
        self.damaged: list[str] = []
        self.left_out: list[str] = []
        self._folder = folder
        self._older = older
        self._progress = progress
        self._wanted = 0

    def clear(self) -> None:
        """Take away what an unfinished backup left, but for pictures, which are used again."""
        for part in (TABLES, GENERATIONS):
            shutil.rmtree(self._folder / part, ignore_errors=True)

    def write_tables(self, conn: Connection, tables: Iterable[StoredTable]) -> None:
        """Write the rows of tables as the transaction of `conn` sees them."""
        chosen = list(tables)
        with self._progress("tables", len(chosen)) as bar:
            for table in chosen:
                with self._part(f"{TABLES}/{table.name}") as file:
                    self.rows[table.name] = copy_out(conn, table, file.write)
                bar.update(1)

    def write_waiting(self, conn: Connection, log: EventLog) -> None:
        """Write the events beyond the offsets that `conn` sees, and note which pictures to copy."""
        uris = set(outbox_pictures(conn))
        with self._part(UNREAD) as file:
            for event in waiting_events(log, conn):
                file.write(event_line(event))
                self.unread += 1
                picture = accepted_picture(event.topic, event.value)
                if picture is not None:
                    uris.add(picture)
        in_events = {name for name in map(picture_name, uris) if name is not None}
        # Each once, ordered by name, in a file: there may be more than memory takes.
        with new_file(self._folder / _WANTED) as wanted, conn.cursor("pictures") as cursor:
            cursor.execute(queries()["backup_pictures"])
            in_rows = filter(None, (picture_name(uri) for (uri,) in cursor))
            for name, _ in groupby(heapq.merge(in_rows, sorted(in_events))):
                wanted.write(f"{name}\n".encode())
                self._wanted += 1

    def write_generations(self, checkpoints: Path, known: Iterable[Generation]) -> None:
        """Copy the weights of generations that may still answer."""
        kept = []
        for generation in known:
            if generation.state in _KEPT_STATES and not generation.dropped:
                kept.append(generation.folder)
            elif generation.state == "building":
                self.left_out.append(
                    f"generation {generation.id} is being trained; train it again after a restore"
                )
        # Two generations may have the same weights.
        for name in dict.fromkeys(kept):
            if (checkpoints / name).is_dir():
                self.folders.append(name)
                self._write_weights(checkpoints / name, name)
            else:
                self.damaged.append(f"the weights {checkpoints / name} are missing")

    def write_pictures(self, conn: Connection, store: ImageStore) -> None:
        """Copy the pictures that were noted, and list them.

        What the store has no more is counted as erased, or as lost when an image still needs it.
        """
        images = self._folder / PICTURES
        make_folder(images)
        older = None if self._older is None else self._older / PICTURES
        missing = []
        with (
            self._progress("pictures", self._wanted) as bar,
            self._part(PICTURE_LIST) as listed,
            (self._folder / _WANTED).open(encoding="utf-8") as lines,
        ):
            names = (line.rstrip("\n") for line in lines)
            for picture in copy_pictures(names, store, images, older):
                if picture.bytes is None:
                    missing.append(store_uri(picture.name))
                else:
                    listed.write(picture_line(picture.name, picture.bytes))
                    self.pictures += 1
                    self.picture_bytes += picture.bytes
                bar.update(1)
        (self._folder / _WANTED).unlink()
        remove_unlisted(listed_pictures(self._folder / PICTURE_LIST), images)
        lost = used_pictures(conn, missing)
        self.erased = [uri for uri in missing if uri not in lost]
        self.damaged += [f"the image store has no readable {uri}" for uri in sorted(lost)]

    @contextmanager
    def _part(self, name: str) -> Iterator[DigestedFile]:
        with new_file(self._folder / name) as file:
            yield file
        self.files[name] = BackupFile(file.bytes, file.sha256)

    def _write_weights(self, source: Path, name: str) -> None:
        expected = recorded_digests(source)
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        with self._progress(f"weights {name}", len(paths)) as bar:
            for path in paths:
                inside = path.relative_to(source).as_posix()
                part = f"{GENERATIONS}/{name}/{inside}"
                if not self._link(path, part):
                    with self._part(part) as file:
                        for piece in pieces_of(path):
                            file.write(piece)
                digest = self.files[part].sha256
                if expected.pop(inside, digest) != digest:
                    self.damaged.append(f"{path} is damaged: it is not what was written")
                bar.update(1)
        self.damaged += [f"{source / missing} is missing" for missing in sorted(expected)]

    def _link(self, path: Path, part: str) -> bool:
        """Link to a file of the older backup that is the same; whether there is one."""
        if self._older is None or not (self._older / part).is_file():
            return False
        digest = digest_of(path)
        if digest_of(self._older / part) != digest:
            return False
        target = self._folder / part
        make_folder(target.parent)
        target.unlink(missing_ok=True)
        try:
            os.link(self._older / part, target)
        except OSError:
            # Another file system, or somebody else's file.
            return False
        self.files[part] = BackupFile(target.stat().st_size, digest)
        return True
