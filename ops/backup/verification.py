"""Verification: whether a backup is what was written, to the byte, before anything uses it."""

from pathlib import Path

from model.network.file_digests import digest_of
from model.progress import Progress
from ops.backup.backup_manifest import (
    MANIFEST,
    PICTURE_LIST,
    PICTURES,
    UNFINISHED,
    BackupFile,
    BackupManifest,
    read_manifest,
)
from ops.backup.picture_copy import check_pictures, listed_pictures
from schemas.errors import UsageError

# What a backup may hold beside what its manifest names: a command that was killed at its very end
# leaves the last one.
_EXPECTED = (MANIFEST, PICTURES, PICTURE_LIST, UNFINISHED)


def verify(folder: Path, progress: Progress) -> BackupManifest:
    """Read all of a backup; `UsageError` names the first file that is not what was written.

    `RefuseToStartError` when a newer program made it.
    """
    manifest = read_manifest(folder)
    with progress("check files", len(manifest.files)) as bar:
        for name, file in manifest.files.items():
            _check_file(folder / name, file)
            bar.update(1)
    _refuse_extra(folder, manifest)
    with progress("check pictures", manifest.pictures) as bar:
        listed = listed_pictures(folder / PICTURE_LIST)
        check_pictures(listed, folder / PICTURES, bar.update)
    return manifest


def _check_file(path: Path, file: BackupFile) -> None:
    if path.is_symlink() or not path.is_file():
        raise UsageError(f"{path} is missing; take another copy of this backup")
    size = path.stat().st_size
    if size != file.bytes:
        raise UsageError(
            f"{path} must have {file.bytes:,} bytes, got {size:,}; take another copy of this backup"
        )
    if digest_of(path) != file.sha256:
        raise UsageError(
            f"{path} cannot be read as it was written: it was damaged or exchanged; take another"
            " copy of this backup"
        )


def _refuse_extra(folder: Path, manifest: BackupManifest) -> None:
    for path in sorted(folder.iterdir()):
        if path.name in _EXPECTED:
            continue
        inside = [path, *path.rglob("*")] if path.is_dir() else [path]
        for file in inside:
            name = file.relative_to(folder).as_posix()
            if not file.is_dir() and name not in manifest.files:
                raise UsageError(f"{file} does not belong to this backup; move it away")
