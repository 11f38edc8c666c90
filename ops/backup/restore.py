"""The restore: a backup into an empty database, an image store and a home.

Pictures and weights first, where being there twice is harmless; then all rows, in one transaction.
So a restore that is killed has changed nothing that counts, and can be run again.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from model.network.file_digests import digest_of, file_names
from model.progress import Progress
from ops.backup.backup_manifest import (
    GENERATIONS,
    OLDEST_SCHEMA,
    PICTURE_LIST,
    PICTURES,
    TABLES,
    UNREAD,
    BackupManifest,
)
from ops.backup.picture_copy import listed_pictures, load_pictures
from ops.backup.private_files import pieces_of, told_when_full
from ops.backup.waiting_events import carry_over, log_scopes
from schemas.errors import RefuseToStartError, UsageError, WorkFailedError
from schemas.events import now
from schemas.records import JsonObject
from stream.log.event_log import EventLog
from workers.repository import generations
from workers.repository.connection import (
    Connection,
    execute,
    fetch_column,
    fetch_rows,
    migrate,
    migrate_to,
    transaction,
)
from workers.repository.deletions import DeletionRequest
from workers.repository.image_deletion import delete_images
from workers.repository.table_copy import (
    COPY_LIMITS,
    clear_tables,
    copy_in,
    end_loading,
    filled_table,
    schema_version,
    stored_tables,
)
from workers.runtime.services import Services

# How to go on when the target is not empty.
_OTHER = "name a new home with SIGMA_HOME, or an empty database with SIGMA_DATABASE_URL"

# Pictures asked about in one statement.
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    images: int
    generations: int
    schema: int
    deleted: int
    """Images that were deleted while the backup was made."""
    carried_over: int
    """Events that waited in another event log and were published again."""
    given_up: tuple[int, ...]
    """Generations that were being trained: failed now."""

    def to_json(self) -> JsonObject:
        """The document of `sigma restore`."""
        return {
            "images": self.images,
            "generations": self.generations,
            "schema": self.schema,
            "deleted": self.deleted,
            "carried_over": self.carried_over,
            "given_up": list(self.given_up),
        }


def restore(
    services: Services, folder: Path, manifest: BackupManifest, progress: Progress
) -> Restored:
    """Restore a backup that was verified; `UsageError` when there is something in the target."""
    with (
        told_when_full(f"the restore into {services.home}"),
        closing(services.connect("restore", COPY_LIMITS)) as conn,
    ):
        _require_room(services, manifest)
        _require_empty(conn, services, manifest)
        same_log = _prepare_services(services, manifest)
        _load_pictures(services, folder, manifest, progress)
        for name in manifest.generations:
            _load_generation(folder, name, services.checkpoints)
        log = services.open_log()
        try:
            with transaction(conn):
                restored = _load_rows(conn, log, services, folder, manifest, progress, same_log)
        finally:
            log.close()
        # Outside: plans would be bad without it, rows are right without it.
        conn.execute("ANALYZE")
    return restored


def _require_empty(conn: Connection, services: Services, manifest: BackupManifest) -> None:
    place = _place(services)
    schema = schema_version(conn)
    if schema is None and stored_tables(conn):
        raise UsageError(f"{place} must be empty, got tables without a schema's number; {_OTHER}")
    filled = None if schema is None else filled_table(conn)
    if filled is not None:
        raise UsageError(f"{place} must be empty, got rows in the table {filled}; {_OTHER}")
    if schema not in (None, manifest.schema):
        raise UsageError(
            f"{place} must be empty or have the backup's schema {manifest.schema}, got an empty one"
            f" of schema {schema}; {_OTHER}"
        )
    others = fetch_column(conn, "other_sessions")
    if others:
        raise UsageError(
            f"processes use {place} ({', '.join(others)}); stop them before a restore: sigma down"
        )


def _require_room(services: Services, manifest: BackupManifest) -> None:
    """Refuse at once what would fill the disk of the embedded database in the end."""
    services.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(services.home).free
    if services.settings.embedded and services.s3 is None and free < manifest.bytes:
        raise WorkFailedError(
            f"{services.home} must have room for {manifest.bytes:,} bytes, got {free:,}; make room,"
            " or name a home on another disk with SIGMA_HOME"
        )


def _place(services: Services) -> str:
    if services.settings.embedded:
        return f"the database of the home {services.home}"
    return "the database of SIGMA_DATABASE_URL"


def _prepare_services(services: Services, manifest: BackupManifest) -> bool:
    """Create bucket and topics; returns whether the event log is the one of the backup."""
    if services.s3 is not None:
        services.s3.create_bucket()
    log = services.open_log()
    try:
        if services.settings.kafka is not None:
            log.ensure_topics()
        return log_scopes(log) == manifest.log_scopes
    finally:
        log.close()


def _load_pictures(
    services: Services, folder: Path, manifest: BackupManifest, progress: Progress
) -> None:
    listed = listed_pictures(folder / PICTURE_LIST)
    names = (picture.name for picture in listed)
    with progress("pictures", manifest.pictures) as bar:
        load_pictures(names, folder / PICTURES, services.store, bar.update)


def _load_generation(folder: Path, name: str, checkpoints: Path) -> None:
    """Copy a folder of weights; whole or not there."""
    source = folder / GENERATIONS / name
    target = checkpoints / name
    if target.exists():
        if not _is_same(source, target):
            raise UsageError(
                f"{target} exists and is not the folder of the backup; move it away, or name a new"
                " home with SIGMA_HOME"
            )
        return
    aside = target.with_name(f".new-{name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    # Not its times and modes: the folder belongs to whoever restores it.
    shutil.copytree(source, aside, copy_function=shutil.copyfile)
    aside.chmod(0o755)
    aside.replace(target)


def _is_same(source: Path, target: Path) -> bool:
    names = file_names(source)
    if names != file_names(target):
        return False
    return all(digest_of(source / name) == digest_of(target / name) for name in names)


def _load_rows(
    conn: Connection,
    log: EventLog,
    services: Services,
    folder: Path,
    manifest: BackupManifest,
    progress: Progress,
    same_log: bool,
) -> Restored:
    # First as it was, then forward: rows fit the tables of their own schema only.
    migrate_to(conn, manifest.schema)
    _require_tables(conn, manifest)
    for generation in manifest.partitions:
        fetch_rows(conn, "open_partitions", generation=generation)
    clear_tables(conn, manifest.tables)
    with progress("tables", len(manifest.tables)) as bar:
        for table in manifest.tables:
            copy_in(conn, table, pieces_of(folder / TABLES / table.name))
            bar.update(1)
    for name, value in manifest.sequences.items():
        fetch_rows(conn, "set_sequence", name=name, value=value)
    end_loading(conn, manifest.tables)
    # Also where the cluster is the same: whoever has followed this database loads anew.
    execute(conn, "begin_epoch")
    schema = migrate(conn)
    given_up = _give_up_trainings(conn)
    deleted = sum(_delete_erased(conn, manifest.erased))
    carried_over = 0
    if not same_log:
        with_kafka = services.settings.kafka is not None
        unread = folder / UNREAD
        carried_over = carry_over(conn, log, unread, with_kafka=with_kafka)
    return Restored(
        images=manifest.rows.get("image", 0),
        generations=len(manifest.generations),
        schema=schema,
        deleted=deleted,
        carried_over=carried_over,
        given_up=given_up,
    )


def _require_tables(conn: Connection, manifest: BackupManifest) -> None:
    there = {table.name: set(table.columns) for table in stored_tables(conn)}
    for table in manifest.tables:
        if not set(table.columns) <= there.get(table.name, set()):
            raise RefuseToStartError(
                f"the backup's table {table.name} is not one of schema {manifest.schema}; restore"
                f" it with the program that made it (schemas from {OLDEST_SCHEMA} are known here)"
            )


def _give_up_trainings(conn: Connection) -> tuple[int, ...]:
    """End generations whose training the backup does not have; returns their numbers."""
    given_up = []
    for generation in generations.generations(conn):
        if generation.state == "building":
            reason = "it was being trained when the backup was made; train it again"
            generations.update(conn, generation.id, failure=[reason])
            generations.set_state(conn, generation.id, "failed")
            given_up.append(generation.id)
    return tuple(given_up)


def _delete_erased(conn: Connection, pictures: tuple[str, ...]) -> Iterator[int]:
    """Delete images that were deleted or replaced while the backup was made: they stay so."""
    for start in range(0, len(pictures), _CHUNK):
        chunk = list(pictures[start : start + _CHUNK])
        rows = fetch_rows(conn, "images_with_pictures", pictures=chunk)
        requests = [DeletionRequest(name, version, now()) for name, version in rows]
        yield len(delete_images(conn, requests).deleted)
