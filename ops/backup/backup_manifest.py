"""The backup manifest: what a backup is made of, with the size and SHA-256 of every file.

It is written last and in one step, so a folder without it is no backup.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from ops.backup.private_files import write_whole
from schemas.errors import RefuseToStartError, UsageError
from schemas.named_sql import migrations
from schemas.records import JsonObject
from workers.repository.table_copy import StoredTable

MANIFEST = "manifest.json"

# Of the layout of the folder; raised when older programs could not restore it.
FORMAT = 1

# The first schema whose rows a restore can take over: it has the epoch.
OLDEST_SCHEMA = 11

# Marks a backup that has not finished; whoever writes it holds its lock.
UNFINISHED = ".unfinished"

# Names of files and folders inside a backup.
TABLES = "tables"
PICTURES = "images"
PICTURE_LIST = "pictures.txt"
GENERATIONS = "generations"
UNREAD = "unread.jsonl"


@dataclass(frozen=True, slots=True)
class BackupFile:
    """What a file of a backup must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """What a backup is made of. Pictures have a list of their own, which is one of the files."""

    made_at: str
    """ISO 8601 with offset."""
    schema: int
    """The number of the newest migration."""
    log_scopes: Mapping[str, str]
    """Under which name the offsets of each topic are stored: tells one event log from another."""
    tables: tuple[StoredTable, ...]
    """In the order in which they are loaded."""
    rows: Mapping[str, int]
    """By table."""
    partitions: tuple[int, ...]
    """Generations with tables of their own."""
    sequences: Mapping[str, int]
    generations: tuple[str, ...]
    """Names of the folders of weights."""
    pictures: int
    picture_bytes: int
    unread: int
    """Events that wait to be worked on."""
    files: Mapping[str, BackupFile]
    """By path inside of the backup, with slashes."""
    erased: tuple[str, ...] = ()
    """Pictures that were erased while the backup was made: their images are deleted ones."""
    damaged: tuple[str, ...] = ()
    """Sentences about what could not be saved because it was lost or damaged before."""
    left_out: tuple[str, ...] = ()
    """Sentences about what a backup does not take."""
    format: int = field(default=FORMAT)

    @property
    def bytes(self) -> int:
        """The size of everything."""
        return self.picture_bytes + sum(file.bytes for file in self.files.values())

    def to_json(self) -> JsonObject:
        """The stored form."""
        document: JsonObject = asdict(self)
        return document

    @classmethod
    def from_json(cls, document: JsonObject) -> Self:
        """Read what `to_json` wrote; `KeyError`, `TypeError` or `ValueError` for anything else."""
        files = {_inside(name): BackupFile(**file) for name, file in document["files"].items()}
        tables = [StoredTable(t["name"], tuple(t["columns"])) for t in document["tables"]]
        for name in (*document["generations"], *(table.name for table in tables)):
            _inside(name)
        lists = ("partitions", "generations", "erased", "damaged", "left_out")
        changed: JsonObject = {name: tuple(document[name]) for name in lists}
        return cls(**(document | changed | {"tables": tuple(tables), "files": files}))


def write_manifest(folder: Path, manifest: BackupManifest) -> None:
    """Make a folder a backup, in one step."""
    document = manifest.to_json()
    text = json.dumps({"digest": _digest(document)} | document, indent=1)
    write_whole(folder / MANIFEST, text.encode() + b"\n")


def read_manifest(folder: Path) -> BackupManifest:
    """Read the manifest of a backup that this program can restore.

    `UsageError` when the folder is none, `RefuseToStartError` when a newer program made it.
    """
    file = folder / MANIFEST
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{folder} must be a backup, and has no {MANIFEST}: it is another folder, or the backup"
            " did not finish; name a whole one"
        ) from None
    try:
        document = json.loads(content)
        digest = document.pop("digest")
        _require_known(folder, document)
        manifest = BackupManifest.from_json(document)
    except (ValueError, KeyError, TypeError, AttributeError):
        digest = None
    if digest is None or digest != _digest(document):
        raise UsageError(
            f"{file} cannot be read as it was written: it was damaged or exchanged; take another"
            " copy of this backup, or an older backup"
        )
    return manifest


def _require_known(folder: Path, document: JsonObject) -> None:
    newest = migrations()[-1].version
    if document["format"] > FORMAT or document["schema"] > newest:
        raise RefuseToStartError(
            f"the backup {folder} has schema {document['schema']} in format {document['format']},"
            f" this program knows up to {newest} in format {FORMAT}; install the newer version of"
            " the program"
        )


def _digest(document: JsonObject) -> str:
    canonical = json.dumps(document, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _inside(name: str) -> str:
    """Refuse a name that would leave the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(name)
    return name
