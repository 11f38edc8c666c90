"""Poison: values that JSON takes and PostgreSQL does not, events that are too large, bad pictures.

The line goes on, and each event ends as indexed or as a dead letter.
"""

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ops.bench.stub import StubAssigner
from schemas.errors import RejectInputError, WorkFailedError
from schemas.events import ACCEPTED, ARRIVED, DELETED, decode
from schemas.records import EARLIEST, LATEST, ByteArray
from stream.log import event_log
from stream.log.offsets import lag, rewind
from tests.line import Line, open_line
from workers import index, intake
from workers.generations.inferred import Inferred
from workers.repository.connection import Connection, connect, transaction
from workers.repository.generations import Generation
from workers.repository.stored_images import images_by_id

TIMES: list[tuple[str, datetime | None]] = [
    ("2026-01-01T00:00:00+23:59", datetime(2025, 12, 31, 0, 1, tzinfo=UTC)),
    ("2026-01-01T00:00:00-23:59", datetime(2026, 1, 1, 23, 59, tzinfo=UTC)),
    ("2026-01-01T00:00:00+16:00", datetime(2025, 12, 31, 8, tzinfo=UTC)),
    ("2026-01-01T00:00:00-16:00", datetime(2026, 1, 1, 16, tzinfo=UTC)),
    ("2026-01-01T00:00:00+15:59", datetime(2025, 12, 31, 8, 1, tzinfo=UTC)),
    ("2026-01-01T00:00:00.123456789Z", datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)),
    ("0001-01-01T00:00:00Z", EARLIEST),
    ("0001-01-01T00:00:00+14:00", EARLIEST),
    ("0001-01-01T00:00:00-23:59", EARLIEST),
    ("9999-12-31T23:59:59Z", LATEST),
    ("9999-12-31T23:59:59-14:00", LATEST),
    ("1900-01-01T00:00:00+00:19", datetime(1899, 12, 31, 23, 41, tzinfo=UTC)),
    ("2026-02-30T00:00:00Z", None),
    ("2026-01-01T00:00:00+24:00", None),
    ("0000-01-01T00:00:00Z", None),
    ("12026-01-01T00:00:00Z", None),
]

FIELDS: list[tuple[dict[str, Any], bool]] = [
    ({"version": 1.0}, True),
    ({"version": 2e0}, True),
    ({"version": 2147483647}, True),
    ({"version": 2147483648}, False),
    ({"version": 1e300}, False),
    ({"version": 10**4000}, False),
    ({"version": 1.5}, False),
    ({"version": True}, False),
    ({"version": 0}, False),
    ({"version": "1"}, False),
    ({"version": float("nan")}, True),
    ({"version": float("inf")}, True),
    ({"captions": ["a\x00b"]}, False),
    ({"captions": ["half \ud800"]}, False),
    ({"captions": [float("nan")]}, False),
    ({"captions": ["\u2028 \U0001f600 \x7f"]}, True),
    ({"split": "a\x00"}, False),
    ({"split": "\udfff"}, False),
    ({"arrived_at": float("-inf")}, True),
    ({"arrived_at": 17}, False),
    ({"unknown": "half \ud800"}, True),
    ({"unknown": float("nan")}, True),
    ({"unknown": 10**400}, True),
    ({"uri": "file:///a\x00.png"}, False),
]


@pytest.fixture
def line(database: str, tmp_path: Path, conn: Connection) -> Iterator[Line]:
    with open_line(database, tmp_path, conn) as made:
        yield made


def settled(line: Line) -> bool:
    """Whether nothing waits any more."""
    waiting = lag(line.log, line.conn, intake.GROUP, intake.TOPICS)
    return waiting + lag(line.log, line.conn, index.GROUP, index.TOPICS) == 0


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_every_time_that_json_can_hold_is_stored_or_refused(
    line: Line, conn: Connection, zone: str
) -> None:
    name = conn.info.dbname
    conn.execute(f"ALTER DATABASE {name} SET timezone = '{zone}'".encode())
    with connect(line.services.database_url) as fresh:
        line.conn = fresh
        for text, _ in TIMES * 2:
            line.arrive(text, arrived_at=text)
        line.arrive("good")
        line.run()
        images = images_by_id(fresh, [text for text, _ in TIMES])
        for text, moment in TIMES:
            assert (images[text].arrived_at if text in images else None) == moment, text
        assert line.letters().keys() == {text for text, moment in TIMES if moment is None}
        assert "good" in line.searchable()
        assert settled(line)
        line.conn = conn


def test_values_that_postgres_does_not_take_are_converted_or_refused_alone(line: Line) -> None:
    uri = line.picture("a")
    for number, (fields, _) in enumerate(FIELDS):
        line.send(ARRIVED, {"image_id": str(number), "uri": uri} | fields)
        line.arrive(f"good {number}")
    line.send(ARRIVED, {"image_id": "ends\n", "uri": uri}, key="ends")
    line.run()
    good = {f"good {number}" for number in range(len(FIELDS))}
    taken = {str(number) for number, (_, is_taken) in enumerate(FIELDS) if is_taken}
    refused = {str(number) for number, (_, is_taken) in enumerate(FIELDS) if not is_taken}
    assert line.searchable().keys() == good | taken
    assert line.letters().keys() == refused | {"ends"}
    assert settled(line)


def test_generated_events_end_as_indexed_or_dead_letters_and_replays_change_nothing(
    line: Line,
) -> None:
    dice = random.Random(6)
    uri = line.picture("a")
    names = [f"image {number}" for number in range(60)]
    for name in names:
        document: dict[str, Any] = {"image_id": name, "uri": uri}
        for fields, _ in dice.sample(FIELDS, dice.randint(0, 3)):
            document |= fields
        if dice.random() < 0.5:
            document["arrived_at"] = dice.choice(TIMES)[0]
        line.send(ARRIVED, document)
    line.run()
    ends = line.searchable().keys() | line.letters().keys()
    assert ends == set(names)
    before = line.checksum
    for _ in range(3):
        rewind(line.log, line.conn, intake.GROUP, ARRIVED)
        rewind(line.log, line.conn, index.GROUP, ACCEPTED)
        line.run()
        assert line.checksum == before
    assert settled(line)


@pytest.mark.parametrize("topic", [ARRIVED, DELETED, ACCEPTED])
def test_a_bad_payload_under_a_key_of_6000_letters_is_one_dead_letter(
    line: Line, topic: str
) -> None:
    noise = random.Random(1)
    # Letters that do not compress: PostgreSQL's index would take a long key of one letter.
    key = "".join(noise.choices("abcdefghijklmnopqrstuvwxyz0123456789ÄÖÜ☃", k=6000))
    line.send(topic, b"not json", key)
    line.arrive("good")
    line.run()
    ((image_id, letter),) = line.letters().items()
    assert letter.code == "bad-event"
    assert image_id[:100] == key[:100]
    assert len(image_id) <= 512
    assert line.searchable() == {"good": 1}
    assert settled(line)


def test_two_megabytes_of_captions_are_refused_at_the_door(line: Line) -> None:
    for number, caption in enumerate(["x" * 2_000_000, "ä" * 450_000, '"' * 400_000]):
        line.arrive(f"large {number}", captions=[caption])
    line.arrive("allowed", captions=["x" * 500_000])
    line.arrive("good")
    line.run()
    assert line.searchable().keys() == {"good", "allowed"}
    letters = line.letters()
    assert {letter.code for letter in letters.values()} == {"too-large"}
    assert len(letters) == 3


def test_two_megabytes_in_an_accepted_event_are_one_dead_letter(line: Line) -> None:
    line.arrive("good")
    line.take_in()
    ((value,),) = line.conn.execute(
        "SELECT value FROM log_event WHERE topic = %s", (ACCEPTED,)
    ).fetchall()
    large = json.loads(value) | {"image_id": "large", "captions": ["x" * 2_000_000]}
    line.send(ACCEPTED, large)
    for field, wrong in (("width", 2**31), ("height", 1e300), ("width", 2**70)):
        line.send(ACCEPTED, json.loads(value) | {"image_id": f"{field} {wrong}", field: wrong})
    line.send(ACCEPTED, json.loads(value) | {"image_id": "floats", "width": 8.0, "version": 1.0})
    line.index()
    assert line.searchable() == {"good": 1, "floats": 1}
    assert len(line.letters()) == 4
    assert settled(line)


class Fragile(StubAssigner):
    """A model that fails on any batch with a wide picture, or on everything."""

    broken = False

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        if self.broken or any(picture.shape[1] > 8 * picture.shape[0] for picture in pictures):
            raise RuntimeError("shape mismatch inside the model")
        return super().infer(pictures)


def test_a_picture_on_which_the_model_fails_is_set_aside_alone(
    database: str, tmp_path: Path, conn: Connection
) -> None:
    def load(generation: Generation) -> Fragile:
        return Fragile(generation.shape, generation.id)

    with open_line(database, tmp_path, conn, load) as line:
        for number in range(20):
            name = f"image {number}"
            size = (200, 8) if number in (3, 4, 17) else (8, 8)
            line.send(ARRIVED, {"image_id": name, "uri": line.picture(name, size=size)})
        line.run()
        bad = {"image 3", "image 4", "image 17"}
        assert line.letters().keys() == bad
        assert line.letters()["image 3"].code == "failed"
        assert "shape mismatch" in line.letters()["image 3"].reason
        registry = line.index_metrics.registry
        assert registry.get_sample_value("sigma_index_rejected_total", {"code": "failed"}) == 3
        assert line.searchable().keys() == {f"image {number}" for number in range(20)} - bad
        assert settled(line)


def test_a_model_that_fails_on_everything_is_not_the_fault_of_the_images(
    database: str, tmp_path: Path, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(generation: Generation) -> Fragile:
        return Fragile(generation.shape, generation.id)

    with open_line(database, tmp_path, conn, load) as line:
        line.arrive("a")
        line.take_in()
        monkeypatch.setattr(Fragile, "broken", True)
        with pytest.raises(WorkFailedError, match="every picture"):
            line.index()
        assert line.letters() == {}
        monkeypatch.setattr(Fragile, "broken", False)
        line.index()
        assert line.searchable() == {"a": 1}


def test_an_event_that_cannot_even_be_read_is_set_aside_with_a_dead_letter(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(topic: str, payload: bytes) -> Any:
        if b"refused" in payload:
            raise RecursionError("a fault that nobody foresaw")
        return decode(topic, payload)

    monkeypatch.setattr(event_log, "decode", fragile)
    for name in ("a", "refused", "b"):
        line.arrive(name)
    line.run()
    assert line.searchable().keys() == {"a", "b"}
    assert line.letters()["refused"].code == "failed"
    assert "nobody foresaw" in line.letters()["refused"].reason


def test_an_event_that_the_database_refuses_is_set_aside_alone(line: Line) -> None:
    line.conn.execute("ALTER TABLE image ADD CHECK (image_id <> 'refused')")
    for name in ("a", "refused", "b"):
        line.arrive(name)
    line.run()
    assert line.searchable().keys() == {"a", "b"}
    assert line.letters().keys() == {"refused"}
    assert settled(line)


def test_an_event_of_which_not_even_a_dead_letter_can_be_made_is_passed(line: Line) -> None:
    line.conn.execute("ALTER TABLE rejection ADD CHECK (image_id <> 'refused')")
    line.send(ARRIVED, b"not json", "refused")
    line.arrive("a")
    line.run()
    assert line.searchable() == {"a": 1}
    registry = line.intake.metrics.registry
    passed = {"verdict": "passed-over"}
    assert registry.get_sample_value("sigma_intake_verdicts_total", passed) == 1
    assert settled(line)


def test_an_index_entry_that_is_too_large_is_no_absent_service(conn: Connection) -> None:
    noise = random.Random(1)
    long = "".join(noise.choices("abcdefghijklmnopqrstuvwxyz0123456789ÄÖÜ☃", k=6000))
    with pytest.raises(RejectInputError, match="size"), transaction(conn):
        conn.execute("INSERT INTO deletion (image_id, version) VALUES (%s, 1)", (long,))
