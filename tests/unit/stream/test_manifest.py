"""Manifests: every form gives the same entries, and a wrong one is one clear line."""

import json
from pathlib import Path

import pytest

from schemas.errors import UsageError
from schemas.records import ManifestEntry
from stream.manifest import read_manifest, read_paths, write_manifest


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


def test_a_bare_folder_is_read_and_nothing_in_it_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jpg", "sub/a.jpg", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert [entry.image_id for entry in read_manifest(tmp_path)] == [
        "b.jpg",
        "gone.jpg",
        "sub/a.jpg",
    ]
    with pytest.raises(UsageError, match="does not exist"):
        read_paths([tmp_path / "none"])
