"""The backup: a folder with everything that an installation is made of, while it goes on working.

First the database, out of one snapshot; then the pictures and weights that it names. What arrives
meanwhile is not in it, and what is erased meanwhile is told.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from model.progress import Progress
from ops.backup.backup_manifest import (
    MANIFEST,
    OLDEST_SCHEMA,
    UNFINISHED,
    BackupManifest,
    write_manifest,
)
from ops.backup.backup_writer import BackupWriter
from ops.backup.private_files import FOLDER_MODE, make_folder, told_when_full
from ops.backup.waiting_events import log_scopes
from ops.embedded.file_lock import hold
from schemas.errors import RefuseToStartError, UsageError
from schemas.named_sql import migrations
from stream.log.event_log import EventLog
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.table_copy import (
    COPY_LIMITS,
    partitioned_generations,
    schema_version,
    sequences,
    stored_tables,
    table_snapshot,
)
from workers.runtime.services import Services

# Sentences about what is damaged that a manifest keeps; of more, how many they are.
_TOLD = 100


def back_up(
    services: Services, folder: Path, progress: Progress, older: Path | None = None
) -> BackupManifest:
    """Make a backup in an empty folder, or go on with one that has not finished there.

    Pictures and weights that an `older` backup has are links to it. `UsageError` when the folder
    holds something else; `WorkFailedError` when the disk is full.
    """
    with told_when_full(f"the backup in {folder}"):
        open_folder(folder)
        with _alone_in(folder), closing(services.connect("backup", COPY_LIMITS)) as conn:
            schema = _require_schema(conn)
            log = services.open_log()
            try:
                writer = BackupWriter(folder, older, progress)
                manifest = _write(services, conn, log, writer, schema)
            finally:
                log.close()
            # One flush for all files: one for each would take most of the time.
            os.sync()
            write_manifest(folder, manifest)
            (folder / UNFINISHED).unlink()
    return manifest


def open_folder(folder: Path) -> None:
    """Create the folder; `UsageError` unless it is empty or holds an unfinished backup."""
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if MANIFEST in names:
            raise UsageError(
                f"{folder} holds a backup already; name a new folder, with --link-from {folder} to"
                " share its pictures"
            )
        if names and UNFINISHED not in names:
            raise UsageError(
                f"{folder} must be an empty folder or a backup that has not finished, got other"
                " files; name a new folder"
            )
    make_folder(folder)
    folder.chmod(FOLDER_MODE)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    lock = hold(folder / UNFINISHED)
    if lock is None:
        raise UsageError(f"another process makes a backup in {folder}; wait for it")
    with lock:
        yield


def _require_schema(conn: Connection) -> int:
    version = schema_version(conn)
    newest = migrations()[-1].version
    if version is None:
        raise UsageError("the database is empty, so there is nothing to save; see SIGMA_HOME")
    if not OLDEST_SCHEMA <= version <= newest:
        raise RefuseToStartError(
            f"the database must have a schema from {OLDEST_SCHEMA} to {newest}, got {version}; use"
            " the program of that schema, or upgrade with: sigma init"
        )
    return version


def _write(
    services: Services, conn: Connection, log: EventLog, writer: BackupWriter, schema: int
) -> BackupManifest:
    made_at = datetime.now(UTC).isoformat()
    scopes = log_scopes(log)
    tables = stored_tables(conn)
    writer.clear()
    with table_snapshot(conn, tables):
        partitions = partitioned_generations(conn)
        writer.write_tables(conn, tables)
        writer.write_waiting(conn, log)
        # Inside of the snapshot: its locks keep generations from being dropped meanwhile.
        writer.write_generations(services.checkpoints, generations.generations(conn))
        numbers = sequences(conn)
    writer.write_pictures(conn, services.store)
    return BackupManifest(
        made_at=made_at,
        schema=schema,
        log_scopes=scopes,
        tables=tuple(tables),
        rows=writer.rows,
        partitions=tuple(partitions),
        sequences=numbers,
        generations=tuple(writer.folders),
        pictures=writer.pictures,
        picture_bytes=writer.picture_bytes,
        unread=writer.unread,
        files=writer.files,
        erased=tuple(writer.erased),
        damaged=_bounded(writer.damaged),
        left_out=tuple(writer.left_out),
    )


def _bounded(sentences: Sequence[str]) -> tuple[str, ...]:
    if len(sentences) <= _TOLD:
        return tuple(sentences)
    return (*sentences[:_TOLD], f"and {len(sentences) - _TOLD:,} more")
