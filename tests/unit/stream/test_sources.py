"""Manifests, sources and the image store."""

import json
import os
from pathlib import Path

import pytest

from schemas.errors import RejectInputError, UsageError
from schemas.records import ManifestEntry
from stream.images import LocalImageStore
from stream.manifest import read_manifest, read_paths, write_manifest
from stream.sources import read_source


def lines(path: Path, *documents: object) -> Path:
    path.write_text("\n".join(json.dumps(document) for document in documents))
    return path


def test_a_manifest_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    manifest = lines(
        tmp_path / "m.jsonl",
        {"image_id": "a", "path": "images/a.jpg", "captions": ["x\u2028y"], "split": "train"},
        {"image_id": "b", "path": "/b.png"},
    )
    first, second = read_manifest(manifest)
    assert first == ManifestEntry("a", str(tmp_path / "images" / "a.jpg"), captions=("x\u2028y",), split="train")
    assert second.path == "/b.png"
    assert second.queries == ()


def test_writing_and_reading_a_manifest_gives_the_same_entries(tmp_path: Path) -> None:
    entries = [ManifestEntry("ü", str(tmp_path / "a b.png"), ("eins",), ("zwei",), "test")]
    write_manifest(tmp_path / "m.jsonl", entries)
    assert read_manifest(tmp_path / "m.jsonl") == entries


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "names no images"),
        ('{"image_id": "a"}', "line 1: path is None"),
        ('{"image_id": "a", "path": "x"}\nnot json', "line 2"),
        ('{"image_id": "a", "path": "x", "captions": "one"}', "a list of texts"),
        ('{"image_id": "a", "path": "x"}\n{"image_id": "a", "path": "y"}', "both entry 1 and entry 2"),
        ('{"image_id": "a", "path": "x", "arrived_at": "2026-01-01T00:00:00"}', "time zone"),
        ("[1, 2]", "an object"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UsageError, match=found):
        read_manifest(tmp_path / "m.jsonl")


def test_karpathys_json_is_read_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    images = [
        {"filename": "1.jpg", "split": "restval", "sentences": [{"raw": "A dog. "}, {"raw": "A brown dog."}]},
        {"filename": "2.jpg", "split": "test", "sentences": [{"raw": "A cat."}]},
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"dataset": "flickr30k", "images": images}))
    train, test = read_manifest(tmp_path / "dataset_flickr30k.json")
    assert (train.split, train.captions, train.path) == ("train", ("A dog.", "A brown dog."), str(tmp_path / "images" / "1.jpg"))
    assert (test.split, test.captions, test.test_captions) == ("test", (), ("A cat.",))


def test_a_bare_folder_is_read_and_nothing_in_it_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jpg", "sub/a.jpg", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert [entry.image_id for entry in read_manifest(tmp_path)] == ["b.jpg", "gone.jpg", "sub/a.jpg"]
    with pytest.raises(UsageError, match="does not exist"):
        read_paths([tmp_path / "none"])


def test_a_source_is_a_regular_file_under_the_cap(tmp_path: Path) -> None:
    file = tmp_path / "a b%.jpg"
    file.write_bytes(b"12345")
    assert read_source(file.as_uri(), cap_bytes=5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for uri, cap, code in (
        (file.as_uri(), 4, "too-many-bytes"),
        ((tmp_path / "pipe").as_uri(), 5, "unreadable"),
        (tmp_path.as_uri(), 5, "unreadable"),
        ((tmp_path / "none").as_uri(), 5, "unreadable"),
        ("http://127.0.0.1/a.jpg", 5, "unsupported-source"),
        ("file://elsewhere/a.jpg", 5, "unsupported-source"),
        ("file:///a%00b", 5, "unreadable"),
    ):
        with pytest.raises(RejectInputError) as refused:
            read_source(uri, cap_bytes=cap)
        assert refused.value.code == code, uri


def test_the_store_keeps_bytes_by_content_and_gives_nothing_else_away(tmp_path: Path) -> None:
    store = LocalImageStore(tmp_path / "store")
    uri = store.put(b"picture")
    assert store.put(b"picture") == uri
    assert store.get(uri) == b"picture"
    (tmp_path / "store").rename(tmp_path / "moved")
    assert LocalImageStore(tmp_path / "moved").get(uri) == b"picture"
    (tmp_path / "moved").rename(tmp_path / "store")
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    for outside in ((tmp_path / "secret").as_uri(), "store:///../secret", "store:///link", "store://host/a.png", "store:///%2e%2e/secret"):
        with pytest.raises(RejectInputError):
            store.get(outside)
    with pytest.raises(UsageError):
        store.put(b"x", "../../evil")
