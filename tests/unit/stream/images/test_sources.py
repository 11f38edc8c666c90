"""Manifests, sources and the image store."""

import json
import os
from pathlib import Path

import pytest

from schemas.errors import RejectInputError, UsageError
from schemas.records import ManifestEntry
from stream.images.redaction import uri_for_message
from stream.images.sources import Sources, read_source
from stream.images.store import LocalImageStore
from stream.manifest import read_manifest, read_paths, write_manifest


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
    ("text", "found"),
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
def test_a_wrong_manifest_is_one_clear_line(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UsageError, match=found):
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


def test_files_are_read_beneath_the_roots_only_with_links_resolved(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "root-other"
    for folder in (root / "sub", other):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"picture")
    (root / "inner.jpg").symlink_to(root / "sub" / "a.jpg")
    (root / "outer.jpg").symlink_to(other / "a.jpg")
    (root / "folder").symlink_to(other)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (tmp_path / "entry").symlink_to(root)
    (root / "\udcff.jpg").write_bytes(b"not UTF-8")
    sources = Sources(100, [tmp_path / "none", tmp_path / "entry"])
    for good in (root / "sub" / "a.jpg", root / "inner.jpg", tmp_path / "entry" / "inner.jpg"):
        assert sources.read(good.as_uri()) == b"picture"
        assert sources.read(good.as_uri().replace("file:///", "FILE://localhost/")) == b"picture"
    assert sources.read((root / "\udcff.jpg").as_uri()) == b"not UTF-8"
    for uri, code in (
        ((other / "a.jpg").as_uri(), "outside-roots"),
        ((root / "outer.jpg").as_uri(), "outside-roots"),
        ((root / "folder" / "a.jpg").as_uri(), "outside-roots"),
        (f"{root.as_uri()}/../root-other/a.jpg", "outside-roots"),
        (f"{root.as_uri()}/%2e%2e/root-other/a.jpg", "outside-roots"),
        ("file:///etc/passwd", "outside-roots"),
        ("file:///proc/self/environ", "outside-roots"),
        (f"file:///proc/self/cwd/{root}/a.jpg", "outside-roots"),
        ((root / "loop.jpg").as_uri(), "unreadable"),
        ((root / "none.jpg").as_uri(), "unreadable"),
        (root.as_uri(), "unreadable"),
        (f"{root.as_uri()}/{'a' * 5000}", "unreadable"),
        (f"{root.as_uri()}/a%00b", "unreadable"),
    ):
        with pytest.raises(RejectInputError) as refused:
            sources.read(uri)
        assert refused.value.code == code, uri
    with pytest.raises(RejectInputError, match="SIGMA_SOURCE_ROOTS"):
        Sources(100, ()).read((root / "sub" / "a.jpg").as_uri())


def test_a_link_put_in_place_between_the_check_and_the_opening_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    for folder in (root / "sub", secret):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(str(folder).encode())
    checked = os.path.realpath(root / "sub" / "a.jpg")
    (root / "sub").rename(root / "moved")
    (root / "sub").symlink_to(secret)
    real = os.path.realpath
    monkeypatch.setattr(
        os.path, "realpath", lambda path: checked if str(path).endswith("a.jpg") else real(path)
    )
    with pytest.raises(RejectInputError) as refused:
        Sources(1000, [root]).read((root / "sub" / "a.jpg").as_uri())
    assert refused.value.code == "unreadable"


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "http://127.0.0.1/a.jpg",
            "ftp://host/a",
            "gopher://host/a",
            "data:image/png;base64,AAAA",
            "javascript:alert(1)",
            "store:///ab/cd.png",
        ),
        *(
            "/etc/passwd",
            "etc/passwd",
            "",
            ":",
            "//host/a",
            " file:///a",
            "file://host/a",
            "file://127.0.0.1/a",
            "file://localhost.evil/a",
        ),
        *(
            "file:a",
            "file:../a",
            "file://",
            "file://user:secret@/a",
            "file://[::1/a",
            "file:///a\nb",
            "file:///a\x00b",
            "x" * 100_000 + ":a",
        ),
    ],
)
def test_what_is_no_file_here_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(RejectInputError) as refused:
        Sources(100, None).read(uri)
    assert refused.value.code == "unsupported-source"
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_objects_are_read_through_the_store() -> None:
    asked: list[tuple[str, str, int]] = []

    def read(bucket: str, key: str, cap_bytes: int) -> bytes:
        asked.append((bucket, key, cap_bytes))
        return bytes(101 if key == "large" else 3)

    sources = Sources(100, None, read, buckets=("my-bucket.1",))
    assert sources.read("s3://my-bucket.1/folder/a b%20ü..jpg") == bytes(3)
    assert sources.read("S3://my-bucket.1//a") == bytes(3)
    assert asked == [("my-bucket.1", "folder/a b%20ü..jpg", 100), ("my-bucket.1", "/a", 100)]
    with pytest.raises(RejectInputError) as refused:
        sources.read("s3://my-bucket.1/large")
    assert refused.value.code == "too-many-bytes"
    # Others may be open to the store's keys, but not to whoever sends an arrival.
    for other in ("my-bucket.2", "my-bucket", "my-bucket.11"):
        with pytest.raises(
            RejectInputError, match=rf"may be read \(my-bucket\.1\), got {other};"
        ) as refused:
            sources.read(f"s3://{other}/a.jpg")
        assert refused.value.code == "outside-buckets"
    assert len(asked) == 3
    with pytest.raises(RejectInputError, match="SIGMA_S3_ENDPOINT") as refused:
        Sources(100, None).read("s3://bucket/a.jpg")
    assert refused.value.code == "unsupported-source"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "/",
            "//",
            "//bucket",
            "//bucket/",
            "///key",
            "bucket/key",
            "//ab/key",
            "//Bucket/key",
            "//-bucket/key",
            "//bu..cket/key",
        ),
        *(
            "//127.0.0.1/key",
            "//bucket:9000/key",
            "//key:secret@bucket/key",
            "//bücket/key",
            "//" + "a" * 64 + "/key",
            "//bucket\\/key",
        ),
        *(
            "//bucket/..",
            "//bucket/a/../b",
            "//bucket/./a",
            "//bucket/%2e%2e/a",
            "//bucket/a%2f..%2fb",
            "//bucket/a\\..\\b",
        ),
        *("//bucket/a?versionId=1", "//bucket/a#b", "//bucket/a\nb", "//bucket/" + "a" * 1025),
    ],
)
def test_what_names_no_object_is_refused_before_the_store_is_asked(address: str) -> None:
    def read(bucket: str, key: str, cap_bytes: int) -> bytes:
        raise AssertionError("the store was asked")

    with pytest.raises(RejectInputError) as refused:
        Sources(100, None, read).read(f"s3:{address}")
    assert refused.value.code == "unsupported-source"
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("https://user:pa/ss@host/a.jpg?sig=x#y", "https://host/a.jpg"),
        ("https://user:pa#ss@host/", "https://[hidden]"),
        ("https://user:12?@host/", "https://[hidden]"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://host:443/a\nb", "https://host:443/a?b"),
        ("https://" + "a" * 500, "https://" + "a" * 192),
    ],
)
def test_messages_show_no_credentials(uri: str, text: str) -> None:
    assert uri_for_message(uri) == text


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
    for outside in (
        (tmp_path / "secret").as_uri(),
        "store:///../secret",
        "store:///link",
        "store://host/a.png",
        "store:///%2e%2e/secret",
    ):
        with pytest.raises(RejectInputError):
            store.get(outside)
    with pytest.raises(UsageError):
        store.put(b"x", "../../evil")
