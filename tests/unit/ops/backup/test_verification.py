"""A backup that is not what was written is refused, in one sentence that names what is wrong."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.progress import quiet
from ops.backup.backup_manifest import (
    MANIFEST,
    PICTURE_LIST,
    UNREAD,
    BackupFile,
    BackupManifest,
    read_manifest,
    write_manifest,
)
from ops.backup.picture_copy import picture_line
from ops.backup.verification import verify
from schemas.errors import RefuseToStartError, SigmaError, UsageError
from schemas.named_sql import migrations
from stream.images.store import content_name
from workers.repository.table_copy import StoredTable

NEWEST = migrations()[-1].version

PICTURES = [b"one picture", b"another picture"]

NAMES = sorted(content_name(data, ".png") for data in PICTURES)


def write(folder: Path, name: str, data: bytes) -> BackupFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return BackupFile(len(data), hashlib.sha256(data).hexdigest())


def manifest_of(files: dict[str, BackupFile], schema: int = NEWEST) -> BackupManifest:
    return BackupManifest(
        made_at="2026-01-01T00:00:00+00:00",
        schema=schema,
        log_scopes={"sigma.images.arrived": "sigma.images.arrived"},
        tables=(StoredTable("image", ("image_key", "image_id")),),
        rows={"image": 2},
        partitions=(1,),
        sequences={"image_image_key_seq": 2},
        generations=("g1",),
        pictures=len(PICTURES),
        picture_bytes=sum(map(len, PICTURES)),
        unread=0,
        files=files,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small whole backup."""
    folder = tmp_path / "saved"
    lines = []
    for data in sorted(PICTURES, key=lambda data: content_name(data, ".png")):
        name = content_name(data, ".png")
        write(folder, f"images/{name}", data)
        lines.append(picture_line(name, len(data)))
    parts = {
        "tables/image": b"1\ta\n2\tb\n",
        "generations/g1/model.bin": b"weights",
        UNREAD: b"",
        PICTURE_LIST: b"".join(lines),
    }
    files = {name: write(folder, name, data) for name, data in parts.items()}
    write_manifest(folder, manifest_of(files))
    return folder


# Damages a backup.
Spoil = Callable[[Path], object]


def flip(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return spoil


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def lose(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def add(name: str) -> Spoil:
    return lambda folder: write(folder, name, b"more")


def link(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return spoil


PICTURE = f"images/{NAMES[0]}"

FILES = ["tables/image", "generations/g1/model.bin", PICTURE_LIST, PICTURE]

DAMAGES = [
    *[(flip(name), name, "damaged or exchanged") for name in [*FILES, MANIFEST]],
    *[(cut(name), name, "must have .* bytes, got") for name in FILES],
    *[(lose(name), name, "is missing") for name in FILES],
    *[(link(name), name, "is missing") for name in FILES],
    (lambda folder: (folder / MANIFEST).write_bytes(b"{"), MANIFEST, "damaged or exchanged"),
    (lose(MANIFEST), "saved", "did not finish"),
    (add("letter.txt"), "letter.txt", "does not belong"),
    (add("tables/other"), "tables/other", "does not belong"),
    (add("generations/g1/other.bin"), "generations/g1/other.bin", "does not belong"),
    (add(f"images/{NAMES[0][:2]}/{'0' * 62}.png"), "0" * 62, "does not belong"),
    (add("images/zz/other.png"), "images/zz", "does not belong"),
]


def test_a_whole_backup_is_read_as_it_was_written(saved: Path) -> None:
    assert verify(saved, quiet) == read_manifest(saved)
    assert read_manifest(saved).rows == {"image": 2}
    # What a command that was killed at its very end has left.
    (saved / ".unfinished").touch()
    verify(saved, quiet)


@pytest.mark.parametrize(("spoil", "name", "words"), DAMAGES)
def test_damage_is_named_in_one_sentence(saved: Path, spoil: Spoil, name: str, words: str) -> None:
    spoil(saved)
    with pytest.raises(UsageError, match=words) as refused:
        verify(saved, quiet)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("change", [{"schema": NEWEST + 1}, {"format": 2}])
def test_a_backup_of_a_newer_program_is_refused(saved: Path, change: dict[str, int]) -> None:
    document = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps(document | change | {"unknown": 1}))
    with pytest.raises(RefuseToStartError, match="install the newer version"):
        verify(saved, quiet)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ""])
def test_a_backup_reaches_nothing_outside_of_its_folder(saved: Path, name: str) -> None:
    shutil.rmtree(saved / "tables")
    write_manifest(saved, manifest_of({name: BackupFile(0, "")}))
    with pytest.raises(SigmaError, match="damaged or exchanged"):
        verify(saved, quiet)
