"""Events of one image in any order: what is searchable in the end depends on the events alone."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from schemas.events import ACCEPTED, ARRIVED, DELETED, ImageAccepted, ImageDeleted
from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, Posting
from stream.log.offsets import rewind
from tests.line import Line, open_line
from workers.repository import counters, generations
from workers.repository.connection import Connection, transaction
from workers.repository.deletions import DeletionRequest
from workers.repository.image_acceptance import accept_images
from workers.repository.image_deletion import delete_images
from workers.repository.image_rows import LateArrival
from workers.repository.postings import append
from workers.repository.stored_images import images_by_id, next_version

SHAPE = IdentifierShape(codes=(2, 2, 2, 2), suffixes=64)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Arrival:
    """A version of the image, published at a second."""

    version: int
    second: int


@dataclass(frozen=True)
class Removal:
    """A deletion, of a version and older ones or of whatever was published before its second."""

    version: int | None
    second: int


History = Sequence[Arrival | Removal]


def searchable_version(history: History) -> int | None:
    """The plain model: every deletion looks at all arrivals, whenever they are read."""
    arrivals = [event for event in history if isinstance(event, Arrival)]
    gone = 0
    for event in history:
        if isinstance(event, Removal):
            before = [a.version for a in arrivals if a.second <= event.second]
            gone = max(gone, event.version or max([1, *before]))
    newest = max((arrival.version for arrival in arrivals), default=0)
    return newest if newest > gone else None


def accepted(name: str, version: int, second: int, content: str = "0") -> ImageAccepted:
    return ImageAccepted(
        name,
        f"file:///{name}.png",
        "store:///a.png",
        content * 64,
        8,
        8,
        BEGIN,
        version=version,
        published_at=BEGIN + timedelta(seconds=second),
    )


def post(conn: Connection, generation: int, image: ImageAccepted) -> None:
    with transaction(conn):
        (key,) = accept_images(conn, [image])
        vector = np.full(8, 0.25, np.float16)
        append(
            conn, generation, SHAPE, [Assignment(key.image_key, (Posting(1, 0.0),), vector, -1.0)]
        )


def read(conn: Connection, generation: int, name: str, event: Arrival | Removal) -> None:
    moment = BEGIN + timedelta(seconds=event.second)
    if isinstance(event, Removal):
        delete_images(conn, [DeletionRequest(name, event.version, moment)])
    else:
        post(conn, generation, accepted(name, event.version, event.second))


def posted(conn: Connection, generation: int) -> dict[str, int]:
    rows = conn.execute(
        "SELECT image_id, version FROM posting JOIN image USING (image_key)"
        " WHERE generation = %s AND suffix IS NOT NULL",
        (generation,),
    )
    return dict(rows.fetchall())


def some_history(dice: random.Random) -> list[Arrival | Removal]:
    history: list[Arrival | Removal] = []
    for _ in range(dice.randint(1, 6)):
        second = dice.randint(1, 9)
        if dice.random() < 0.6:
            history.append(Arrival(dice.randint(1, 3), second))
        else:
            history.append(Removal(dice.choice([None, None, 1, 2, 3]), second))
    return history


@pytest.fixture
def generation(conn: Connection) -> int:
    return generations.create_generation(conn, SHAPE)


@pytest.fixture
def line(database: str, tmp_path: Path, conn: Connection) -> Iterator[Line]:
    with open_line(database, tmp_path, conn) as made:
        yield made


def test_the_order_in_which_events_are_read_does_not_matter(
    conn: Connection, generation: int
) -> None:
    dice = random.Random(13)
    expected: dict[str, int] = {}
    for number in range(60):
        history = some_history(dice)
        version = searchable_version(history)
        for order in range(2):
            name = f"image {number} in order {order}"
            dice.shuffle(history)
            # Some events are read twice: delivery is at least once.
            for event in [*history, *dice.sample(history, len(history) // 2)]:
                read(conn, generation, name, event)
            if version is not None:
                expected[name] = version
    assert posted(conn, generation) == expected
    assert counters.recount(conn, generation) == counters.totals(conn, generation)


@pytest.mark.parametrize("version", [None, 1, 2])
def test_a_deletion_that_overtakes_its_image_holds(
    conn: Connection, generation: int, version: int | None
) -> None:
    read(conn, generation, "a", Removal(version, second=1))
    read(conn, generation, "a", Arrival(1, second=3))
    assert posted(conn, generation) == {}
    assert images_by_id(conn, ["a"])["a"].state == "deleted"
    assert counters.image_totals(conn).deleted == 1
    read(conn, generation, "a", Arrival(3, second=5))
    assert posted(conn, generation) == {"a": 3}


def test_an_arrival_that_was_deleted_before_is_counted_once_and_keeps_no_content(
    conn: Connection,
) -> None:
    delete_images(conn, [ImageDeleted("a")])
    for _ in range(3):
        delete_images(conn, [], [LateArrival("a", 1, BEGIN, BEGIN)])
    image = images_by_id(conn, ["a"])["a"]
    assert (image.state, image.uri, image.captions) == ("deleted", "", ())
    assert counters.image_totals(conn).deleted == 1


def test_deleting_an_id_by_hand_holds_for_what_is_on_its_way(
    conn: Connection, generation: int
) -> None:
    assert delete_images(conn, ["a"]).untouched == ("a",)
    post(conn, generation, accepted("a", 1, second=9))
    assert posted(conn, generation) == {}


def test_the_same_version_with_other_bytes_is_a_conflict_and_changes_nothing(
    conn: Connection, generation: int
) -> None:
    post(conn, generation, accepted("a", 1, second=1, content="a"))
    (same,) = accept_images(conn, [accepted("a", 1, second=2, content="a")])
    (other,) = accept_images(conn, [accepted("a", 1, second=3, content="b")])
    assert (same.conflict, other.conflict) == (None, "a" * 64)
    assert images_by_id(conn, ["a"])["a"].checksum == "a" * 64


def test_two_contents_of_one_version_in_one_batch_are_a_conflict(conn: Connection) -> None:
    first, second = accept_images(
        conn, [accepted("a", 1, 1, content="a"), accepted("a", 1, 1, content="b")]
    )
    assert (first.is_new, first.conflict) == (True, None)
    assert (second.is_new, second.conflict) == (False, "a" * 64)


def test_a_changed_file_gets_the_next_version_and_the_same_one_keeps_its_own(
    conn: Connection,
) -> None:
    assert next_version(None, "a" * 64, {}) == 1
    assert next_version(None, "a" * 64, {}, deleted=2) == 3
    accept_images(conn, [accepted("a", 4, 1, content="a")])
    stored = images_by_id(conn, ["a"])["a"]
    assert next_version(stored, "a" * 64, {}) == 4
    assert next_version(stored, "b" * 64, {}) == 5
    assert next_version(stored, None, {}) == 4
    delete_images(conn, ["a"])
    assert next_version(images_by_id(conn, ["a"])["a"], "a" * 64, {}) == 5


def test_arrivals_followed_at_once_by_their_deletion_end_as_deleted(line: Line) -> None:
    names = [f"image {number}" for number in range(40)]
    for number, name in enumerate(names):
        if number % 4 == 0:
            line.delete(name)
        line.arrive(name)
        if number % 4 == 1:
            line.delete(name)
        if number % 4 == 2:
            line.delete(name, version=1)
    # Deletions are read first, in between, and last: the result is the same.
    line.take_in([DELETED])
    line.run()
    assert line.searchable() == dict.fromkeys(names[3::4], 1)
    assert counters.image_totals(line.conn).deleted == 30


@pytest.mark.parametrize("deleted_first", [True, False], ids=["overtaking", "behind"])
def test_a_deletion_holds_while_the_accepted_event_is_on_its_way(
    line: Line, deleted_first: bool
) -> None:
    line.arrive("a")
    line.delete("a")
    line.take_in([DELETED, ARRIVED] if deleted_first else [ARRIVED])
    line.take_in()
    line.index()
    assert line.searchable() == {}
    line.arrive("a", version=2)
    line.run()
    assert line.searchable() == {"a": 2}


def test_a_replay_of_every_topic_leaves_what_was_deleted_deleted(line: Line) -> None:
    for name in ("kept", "gone", "back"):
        line.arrive(name)
    line.run()
    line.delete("gone")
    line.delete("back")
    line.run()
    line.arrive("back", version=2, shade=1)
    line.run()
    before = line.checksum
    for topic, group in ((ARRIVED, "intake"), (DELETED, "intake"), (ACCEPTED, "index")):
        rewind(line.log, line.conn, group, topic)
        line.run()
    assert line.searchable() == {"kept": 1, "back": 2}
    assert line.checksum == before
    assert line.letters() == {}


def test_the_same_version_with_other_bytes_is_told_and_the_first_stays(line: Line) -> None:
    line.arrive("a")
    line.run()
    before = line.checksum
    line.arrive("a", shade=1)
    line.run()
    assert line.letters()["a"].code == "version-conflict"
    assert line.checksum == before
    assert line.searchable() == {"a": 1}
    # The same bytes once more, from another address too, are no conflict.
    line.send(ARRIVED, {"image_id": "b", "uri": line.picture("b")})
    line.run()
    copy = line.services.home / "copy.png"
    copy.write_bytes((line.services.home / "b.png").read_bytes())
    line.send(ARRIVED, {"image_id": "b", "uri": copy.as_uri()})
    line.run()
    assert set(line.letters()) == {"a"}


def test_two_pictures_of_one_version_in_one_batch_are_told(line: Line) -> None:
    line.send(ARRIVED, {"image_id": "a", "uri": line.picture("one")})
    line.send(ARRIVED, {"image_id": "a", "uri": line.picture("two")})
    line.run()
    assert line.searchable() == {"a": 1}
    assert line.letters()["a"].code == "version-conflict"
