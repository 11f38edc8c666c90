"""Sources: only files, buckets and hosts that may be read are, whatever the URI says."""

import os
from pathlib import Path

import pytest

from schemas.errors import RejectInputError
from stream.images.sources import Sources, read_source


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
        "http://127.0.0.1/a.jpg",
        "ftp://host/a",
        "gopher://host/a",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "store:///ab/cd.png",
        "/etc/passwd",
        "etc/passwd",
        "",
        ":",
        "//host/a",
        " file:///a",
        "file://host/a",
        "file://127.0.0.1/a",
        "file://localhost.evil/a",
        "file:a",
        "file:../a",
        "file://",
        "file://user:secret@/a",
        "file://[::1/a",
        "file:///a\nb",
        "file:///a\x00b",
        "x" * 100_000 + ":a",
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
        "//127.0.0.1/key",
        "//bucket:9000/key",
        "//key:secret@bucket/key",
        "//bücket/key",
        "//" + "a" * 64 + "/key",
        "//bucket\\/key",
        "//bucket/..",
        "//bucket/a/../b",
        "//bucket/./a",
        "//bucket/%2e%2e/a",
        "//bucket/a%2f..%2fb",
        "//bucket/a\\..\\b",
        "//bucket/a?versionId=1",
        "//bucket/a#b",
        "//bucket/a\nb",
        "//bucket/" + "a" * 1025,
    ],
)
def test_what_names_no_object_is_refused_before_the_store_is_asked(address: str) -> None:
    def read(bucket: str, key: str, cap_bytes: int) -> bytes:
        raise AssertionError("the store was asked")

    with pytest.raises(RejectInputError) as refused:
        Sources(100, None, read).read(f"s3:{address}")
    assert refused.value.code == "unsupported-source"
    assert "secret" not in str(refused.value)
