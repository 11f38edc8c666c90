"""Metadata in the line: stored with a version, returned, replaced by a higher one, and erased."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.ingestion import publish
from schemas.events import ARRIVED, ImageArrived
from schemas.metadata import Metadata
from schemas.records import ManifestEntry
from tests.integration.test_event_order import accepted
from tests.line import Line, open_line
from workers.repository.connection import Connection, connect
from workers.repository.follower import TrieFollower
from workers.repository.image_acceptance import accept_images
from workers.repository.stored_images import images_by_id

METADATA = {"year": 2026, "tags": ["b", "a"], "at": "2026-01-31T12:00:00Z", "by": "ü", "is": True}
STORED = METADATA | {"tags": ("a", "b")}


@pytest.fixture
def line(database: str, tmp_path: Path, conn: Connection) -> Iterator[Line]:
    with open_line(database, tmp_path, conn) as made:
        yield made


def metadata_of(line: Line, name: str) -> Any:
    return images_by_id(line.conn, [name])[name].metadata


def test_metadata_is_stored_replaced_and_erased(line: Line) -> None:
    line.arrive("a", metadata=METADATA)
    line.arrive("b")
    line.run()
    assert metadata_of(line, "a") == STORED
    assert metadata_of(line, "b") == {}
    line.arrive("a", version=2, metadata={"year": 2027})
    line.run()
    assert line.searchable() == {"a": 2, "b": 1}
    assert metadata_of(line, "a") == {"year": 2027}
    line.delete("a")
    line.run()
    assert line.searchable() == {"b": 1}
    assert metadata_of(line, "a") == {}


def test_one_version_has_one_metadata(line: Line) -> None:
    line.arrive("a", metadata=METADATA)
    line.run()
    # Another order of fields and tags is the same metadata.
    line.arrive("a", metadata={name: METADATA[name] for name in sorted(METADATA)})
    line.arrive("a", metadata=METADATA | {"tags": ["a", "b"]})
    line.run()
    assert line.letters() == {}
    line.arrive("a", metadata=METADATA | {"year": 2027})
    line.run()
    letter = line.letters()["a"]
    assert letter.code == "version-conflict"
    assert "is stored with other metadata" in letter.reason
    assert metadata_of(line, "a") == STORED


def test_two_metadata_of_one_version_in_one_batch_are_a_conflict(conn: Connection) -> None:
    one = replace(accepted("a", 1, 1), metadata={"is": True})
    first, second = accept_images(conn, [one, replace(one, metadata={"is": 1})])
    assert (first.is_new, first.conflict) == (True, None)
    assert (second.is_new, second.conflict) == (False, "0" * 64)


def test_what_cannot_be_metadata_is_a_dead_letter_of_its_own(line: Line) -> None:
    line.arrive("good", metadata=METADATA)
    line.arrive("bad", metadata={"year": {"from": 2026}})
    line.send(ARRIVED, b'{"image_id":"nul","uri":"x","metadata":{"a":"\\u0000"}}', key="nul")
    line.run()
    assert line.searchable() == {"good": 1}
    letters = line.letters()
    assert {name: letter.code for name, letter in letters.items()} == {
        "bad": "bad-event",
        "nul": "bad-event",
    }
    assert "metadata field year must be a text, a number" in letters["bad"].reason


def test_changed_metadata_of_a_manifest_is_the_next_version(line: Line) -> None:
    path = line.services.home / "a.png"
    line.picture("a")

    def send(metadata: Metadata) -> ImageArrived:
        entries = [ManifestEntry("a", str(path), metadata=metadata)]
        (event,) = publish(line.conn, line.log, entries, None, lambda _: None).events
        line.run()
        return event

    assert send({"year": 2026}).version == 1
    assert send({"year": 2026}).version == 1
    assert send({"year": 2027, "tags": ("a",)}).version == 2
    assert metadata_of(line, "a") == {"year": 2027, "tags": ("a",)}
    assert send({}).version == 3
    assert metadata_of(line, "a") == {}
    assert line.letters() == {}


def test_a_follower_reads_metadata_with_the_images_it_is_of(line: Line, database: str) -> None:
    line.arrive("a", metadata=METADATA)
    line.arrive("none")
    line.run()
    with connect(database) as own:
        follower = TrieFollower.open(own, line.generation)
        loaded = follower.load()
        key = images_by_id(line.conn, ["a"])["a"].image_key
        assert loaded.metadata == {key: STORED}
        line.arrive("a", version=2, metadata={"year": 2027})
        line.arrive("b", metadata={"year": 1})
        line.arrive("gone", metadata={"year": 2})
        line.run()
        line.delete("gone")
        line.run()
        changes = follower.changes()
        stored = images_by_id(line.conn, ["a", "b"])
        assert changes.metadata == {
            stored["a"].image_key: {"year": 2027},
            stored["b"].image_key: {"year": 1},
        }
        assert key in changes.deleted.tolist()
        assert follower.changes().metadata == {}
