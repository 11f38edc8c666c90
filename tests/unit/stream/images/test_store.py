"""The local image store: bytes by content, and nothing outside its folder."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.errors import RejectInputError, UsageError
from stream.images.store import LocalImageStore


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


def test_a_damaged_picture_is_refused_by_name_and_stored_anew(tmp_path: Path) -> None:
    store = LocalImageStore(tmp_path)
    uri = store.put(b"picture")
    store.path(uri).write_bytes(b"picturf")
    with pytest.raises(RejectInputError, match=uri) as refusal:
        store.get(uri)
    assert refusal.value.code == "damaged-store"
    # What the refusal asks for.
    assert store.put(b"picture") == uri
    assert store.get(uri) == b"picture"


def test_bytes_are_removed_unless_they_were_put_again_since(tmp_path: Path) -> None:
    store = LocalImageStore(tmp_path)
    uri = store.put(b"picture")
    before = datetime.now(UTC) - timedelta(hours=1)
    assert not store.remove(uri, before)
    assert store.get(uri) == b"picture"
    os.utime(store.path(uri), (0, 0))
    store.put(b"picture")
    assert not store.remove(uri, before)
    os.utime(store.path(uri), (0, 0))
    assert store.remove(uri, before)
    assert not store.exists(uri)
    assert store.remove(uri, before)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
