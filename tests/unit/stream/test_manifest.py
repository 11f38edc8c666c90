"""Manifests: every form gives the same entries, and a wrong one is one clear line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UsageError
from schemas.records import ManifestEntry
from stream.manifest import list_folder, list_paths, read_manifest, write_manifest


def json_lines(path: Path, *documents: object) -> Path:
    """Write a manifest with one JSON document a line."""
    path.write_text("\n".join(json.dumps(document) for document in documents))
    return path


def test_a_manifest_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    manifest = json_lines(
        tmp_path / "m.jsonl",
        {"image_id": "a", "path": "images/a.jpg", "captions": ["x\u2028y"], "split": "train"},
        {"image_id": "b", "path": "/b.png"},
    )
    first, second = read_manifest(manifest)
    assert first == ManifestEntry(
        "a", str(tmp_path / "images" / "a.jpg"), captions=("x\u2028y",), split="train"
    )
    assert second.path == "/b.png"
    assert second.queries == ()


def test_writing_and_reading_a_manifest_gives_the_same_entries(tmp_path: Path) -> None:
    entries = [ManifestEntry("ü", str(tmp_path / "a b.png"), ("eins",), ("zwei",), "test")]
    entries.append(ManifestEntry("m", "/m.png", metadata={"year": 2026, "tags": ("a", "b")}))
    write_manifest(tmp_path / "m.jsonl", entries)
    assert read_manifest(tmp_path / "m.jsonl") == entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name images, got none"),
        ('{"image_id": "a"}', "line 1: path must be a text that is not empty, got None"),
        ('{"image_id": "a", "path": "x"}\nnot json', "line 2"),
        (
            '{"image_id": "a", "path": "x", "captions": "one"}',
            "captions must be a list of texts, got 'one'",
        ),
        (
            '{"image_id": "a", "path": "x"}\n{"image_id": "a", "path": "y"}',
            "both entry 1 and entry 2",
        ),
        ('{"image_id": "a", "path": "x", "arrived_at": "2026-01-01T00:00:00"}', "time zone"),
        ("[1, 2]", "must be an object"),
        ('{"image_id": "a", "path": "x", "metadata": {"a": [1]}}', "line 1: metadata field a must"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_manifest(tmp_path / "m.jsonl")


def test_karpathys_json_is_read_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    images = [
        {
            "filename": "1.jpg",
            "split": "restval",
            "sentences": [{"raw": "A dog. "}, {"raw": "A brown dog."}],
        },
        {"filename": "2.jpg", "split": "test", "sentences": [{"raw": "A cat."}]},
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(
        json.dumps({"dataset": "flickr30k", "images": images})
    )
    train, test = read_manifest(tmp_path / "dataset_flickr30k.json")
    assert (train.split, train.captions, train.path) == (
        "train",
        ("A dog.", "A brown dog."),
        str(tmp_path / "images" / "1.jpg"),
    )
    assert (test.split, test.captions, test.test_captions) == ("test", (), ("A cat.",))


def file_in(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def ids_in(*paths: Path) -> list[str]:
    return [entry.image_id for entry in list_paths(paths).entries]


def id_of(path: Path) -> str:
    return path.as_posix().removeprefix("/")


def test_a_bare_folder_is_read_and_nothing_in_it_is_passed_over(tmp_path: Path) -> None:
    file_in(tmp_path, "b.jpg", "sub/a.jpg", ".hidden.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert [entry.image_id for entry in read_manifest(tmp_path)] == [
        id_of(tmp_path / "b.jpg"),
        id_of(tmp_path / "gone.jpg"),
        id_of(tmp_path / "sub/a.jpg"),
    ]
    with pytest.raises(UsageError, match="does not exist"):
        list_paths([tmp_path / "none"])


def test_pictures_of_the_same_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    name = "IMG_0001.jpg"
    file_in(tmp_path, f"2024/{name}", f"2025/{name}", f"card/2024/{name}")
    two = ids_in(tmp_path / "2024", tmp_path / "2025")
    assert two == [id_of(tmp_path / "2024" / name), id_of(tmp_path / "2025" / name)]
    # From the folder above, alone, as a file, or twice: the same picture, the same id.
    assert set(two) < set(ids_in(tmp_path))
    assert ids_in(tmp_path / "2025") == ids_in(tmp_path / "2025" / name) == two[1:]
    assert ids_in(tmp_path, tmp_path / "2024", tmp_path / "2024" / name) == ids_in(tmp_path)
    # Folders of one name in two places.
    assert not set(ids_in(tmp_path / "2024")) & set(ids_in(tmp_path / "card" / "2024"))


def test_the_same_folder_gives_the_same_ids_wherever_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_in(tmp_path, "photos/2024/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    ids = ids_in(tmp_path / "photos")
    for place, path in (
        (tmp_path, "photos"),
        (tmp_path / "photos", "."),
        (tmp_path / "photos" / "2024", ".."),
        (tmp_path, "photos/../photos"),
        (tmp_path, "link"),
        (tmp_path, "link/2024/a.jpg"),
    ):
        monkeypatch.chdir(place)
        assert ids_in(Path(path)) == ids, (place, path)


def test_linked_folders_unreadable_ones_and_long_names_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "/".join(["x" * 200] * 3)
    file_in(tmp_path, "album/a.jpg", f"album/{long}/b.jpg", "album/locked/c.jpg", "else/d.jpg")
    (tmp_path / "album" / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "album" / "loop").symlink_to(tmp_path / "album")
    scan = os.scandir

    def refusing(path: str) -> Any:
        # Permissions do not keep out the user root, as whom tests may run.
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = list_folder(tmp_path / "album")
    assert [Path(entry.path).name for entry in listing.entries] == ["a.jpg"]
    assert {(Path(refused.path).name, refused.code) for refused in listing.left_out} == {
        ("linked", "linked-folder"),
        ("loop", "linked-folder"),
        ("locked", "unreadable-folder"),
        ("b.jpg", "long-id"),
    }
    assert all(len(refused.reason) > 20 for refused in listing.left_out)


def test_a_folder_of_which_everything_is_left_out_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "linked").symlink_to(tmp_path)
    listing = list_folder(tmp_path / "album")
    assert listing.entries == []
    assert [refused.code for refused in listing.left_out] == ["linked-folder"]


def test_hidden_files_and_folders_are_counted(tmp_path: Path) -> None:
    file_in(tmp_path, "a.jpg", ".DS_Store", ".thumbnails/a.jpg", "sub/.b.jpg")
    listing = list_paths([tmp_path])
    assert [Path(entry.path).name for entry in listing.entries] == ["a.jpg"]
    assert listing.hidden == 3
