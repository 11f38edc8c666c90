"""Deleting is erasing: captions, addresses and pictures go from rows, store and embedded log."""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql

from ops.jobs.erasing import Erased, erase
from ops.jobs.registry import JOBS, prune_history, trim_events
from schemas.errors import RetryLaterError
from schemas.events import ACCEPTED, ARRIVED, SERVED, ImageAccepted, ImageArrived, ImageRejected
from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, Posting
from schemas.settings import Settings
from stream.images.store import LocalImageStore
from stream.log.dead_letters import dead_letter
from stream.log.event_log import Message, message
from stream.log.postgres import PostgresLog
from workers.repository import counters, generations, postings
from workers.repository.connection import Connection, execute
from workers.repository.follower import TrieFollower
from workers.repository.image_acceptance import accept_images
from workers.repository.image_deletion import delete_images
from workers.repository.rejections import reject_image, rejections
from workers.repository.stored_images import images_by_id
from workers.runtime.services import Services

SHAPE = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)

AT_ONCE = timedelta(0)


class Installation:
    """Log, store and database with everything in it that an image leaves."""

    def __init__(self, conn: Connection, database: str, folder: Path) -> None:
        self.conn = conn
        self.folder = folder
        self.store = LocalImageStore(folder)
        self.log = PostgresLog(database)
        self.log.ensure_topics()
        self.generation = generations.create_generation(conn, SHAPE)

    def index(self, image_id: str, version: int = 1, *, picture: bytes | None = None) -> bytes:
        """Let an image arrive, be asked for and be indexed; return its picture."""
        picture = picture or f"picture of {image_id} {version}".encode()
        captions = (f"caption of {image_id} {version}",)
        accepted = ImageAccepted(
            image_id=image_id,
            uri=f"https://example.org/{image_id}/{version}",
            normalized_uri=self.store.put(picture),
            checksum=f"checksum of {image_id} {version}",
            width=10,
            height=20,
            arrived_at=datetime.now(UTC),
            version=version,
            captions=captions,
            test_captions=(f"held out of {image_id} {version}",),
        )
        arrived = ImageArrived(image_id, accepted.uri, version=version, captions=captions)
        self.log.publish(None, [message(arrived, image_id), message(accepted, image_id)])
        (stored,) = accept_images(self.conn, [accepted])
        if stored.is_new:
            embedding = np.full(8, 0.25, np.float16)
            work = Assignment(stored.image_key, (Posting(3, 0.0),), embedding, -1.0)
            postings.append(self.conn, self.generation, SHAPE, [work])
        self.conn.execute(
            "INSERT INTO shadow_query (candidate, live, query, live_ms, candidate_ms, overlap)"
            " VALUES (1, 2, %s, 1, 1, 1)",
            captions,
        )
        return picture

    def reject(self, image_id: str, version: int = 1) -> None:
        """Let an image arrive that is refused."""
        uri = f"https://example.org/{image_id}/{version}"
        arrived = message(ImageArrived(image_id, uri, version=version), image_id)
        self.log.publish(None, [arrived])
        ((place, _),) = [
            (place, end)
            for place, end in self.log.end_offsets([ARRIVED]).items()
            if any(event.key == image_id for event in self.log.read(*place))
        ]
        event = next(event for event in self.log.read(*place) if event.key == image_id)
        rejected = ImageRejected(image_id, uri, "unreadable", f"cannot read {uri}", "intake")
        reject_image(self.conn, rejected)
        self.log.publish(None, [dead_letter(event, rejected)])

    def read_everything(self) -> None:
        """Let both groups commit whatever is in the log."""
        self.conn.execute(
            "INSERT INTO consumer_offset SELECT g, p.topic, p.partition, p.next_offset"
            " FROM log_partition p JOIN (VALUES ('intake', 'sigma.images.arrived'),"
            " ('index', 'sigma.images.accepted')) AS v (g, topic) ON v.topic = p.topic"
            " ON CONFLICT (consumer_group, topic, partition)"
            " DO UPDATE SET next_offset = excluded.next_offset"
        )

    def prune(self, grace: timedelta = AT_ONCE) -> Erased:
        """What the job `prune` erases."""
        # Files are dated by the kernel's coarse clock, which may be ahead by a tick.
        time.sleep(0.02)
        return erase(self.conn, self.store, self.log, embedded_log=True, grace=grace)

    def traces(self, *, log: bool = True) -> str:
        """Everything in all tables and in the store's folder, as one text."""
        texts = []
        tables = self.conn.execute(
            "SELECT oid::regclass::text, relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        for _, name in tables:
            if not log and name == "log_event":
                continue
            query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name))
            texts += [f"{name}: {row}" for (row,) in self.conn.execute(query)]
        for path in self.folder.rglob("*"):
            texts.append(str(path))
            if path.is_file():
                texts.append(path.read_bytes().decode("latin-1"))
        return "\n".join(texts)

    def contains(self, needles: Sequence[str], *, log: bool = True) -> list[str]:
        """Those of the words that are found anywhere, as they are or as hexadecimal bytes."""
        text = self.traces(log=log)
        return [word for word in needles if word in text or word.encode().hex() in text]


def words(image_id: str, version: int = 1) -> list[str]:
    """What would tell that an image was there."""
    return [
        f"{kind} of {image_id} {version}" for kind in ("picture", "caption", "held out", "checksum")
    ] + [f"example.org/{image_id}/{version}"]


@pytest.fixture
def installation(conn: Connection, database: str, tmp_path: Path) -> Iterator[Installation]:
    made = Installation(conn, database, tmp_path / "images")
    yield made
    made.log.close()


def test_after_a_deletion_nothing_of_the_image_is_left_in_rows_and_soon_nothing_anywhere(
    installation: Installation,
) -> None:
    installation.index("gone")
    installation.index("stays")
    installation.read_everything()
    assert installation.contains(words("gone")) == words("gone")
    delete_images(installation.conn, ["gone"])
    in_rows = ["caption", "held out", "checksum"]
    left = installation.contains(words("gone"), log=False)
    # At once from the rows of images; the job takes the rest.
    assert not [word for word in left if word.split()[0] in in_rows[1:]]
    assert "example.org/gone/1" not in left
    erased = installation.prune()
    assert (erased.pictures, erased.queries, erased.waiting) == (1, 1, 0)
    assert installation.contains(words("gone")) == []
    assert installation.contains(words("stays")) == words("stays")
    assert installation.conn.execute("SELECT count(*) FROM erasure").fetchone() == (0,)


def test_of_a_version_that_was_replaced_nothing_is_left_either(installation: Installation) -> None:
    installation.index("a", 1)
    installation.index("a", 2)
    installation.read_everything()
    installation.prune()
    assert installation.contains(words("a", 1)) == []
    assert installation.contains(words("a", 2)) == words("a", 2)


def test_the_address_and_the_reason_of_a_refused_image_go_with_its_deletion(
    installation: Installation,
) -> None:
    installation.reject("bad")
    installation.read_everything()
    assert installation.contains(["example.org/bad/1"])
    delete_images(installation.conn, ["bad"])
    assert installation.contains(["example.org/bad/1"], log=False) == []
    installation.prune()
    assert installation.contains(["example.org/bad/1"]) == []


def test_what_arrives_again_after_its_deletion_leaves_nothing(installation: Installation) -> None:
    delete_images(installation.conn, ["late"])
    installation.index("late")
    installation.read_everything()
    installation.prune()
    assert installation.contains(words("late")) == []
    assert counters.image_totals(installation.conn).deleted == 1


def test_a_picture_that_another_image_has_too_stays_until_that_one_goes(
    installation: Installation,
) -> None:
    picture = installation.index("a")
    installation.index("b", picture=picture)
    installation.read_everything()
    delete_images(installation.conn, ["a"])
    assert installation.prune().pictures == 0
    assert installation.contains(["picture of a 1"])
    assert installation.contains(words("a")[1:]) == []
    delete_images(installation.conn, ["b"])
    assert installation.prune().pictures == 1
    assert not installation.contains(["picture of a 1"])


def test_a_picture_that_an_arrival_under_way_needs_stays(installation: Installation) -> None:
    picture = installation.index("a")
    installation.read_everything()
    delete_images(installation.conn, ["a"])
    # Another image with the same picture has passed intake, and its row is still to come.
    uri = installation.store.put(picture)
    assert installation.prune(timedelta(hours=1)).waiting == 1
    accepted = ImageAccepted("b", "u", uri, "c", 1, 1, datetime.now(UTC))
    installation.log.publish(None, [message(accepted, "b")])
    os.utime(installation.store.path(uri), (0, 0))
    # It waits for longer than pictures are kept for.
    assert installation.prune().waiting == 1
    assert installation.store.get(uri) == picture
    accept_images(installation.conn, [accepted])
    installation.read_everything()
    assert (installation.prune().waiting, installation.store.exists(uri)) == (0, True)


def test_events_that_a_group_has_not_read_are_erased_when_it_has(
    installation: Installation,
) -> None:
    installation.index("a")
    delete_images(installation.conn, ["a"])
    assert installation.prune(timedelta(days=1)).waiting == 1
    assert "caption of a 1" in installation.contains(words("a"))
    installation.read_everything()
    assert installation.prune().waiting == 0
    assert installation.contains(words("a")) == []


def test_the_job_prune_erases_and_tells_how_much(
    installation: Installation, database: str, tmp_path: Path
) -> None:
    conn = installation.conn
    services = Services(Settings(home=tmp_path), database)
    picture = installation.index("a")
    installation.read_everything()
    delete_images(conn, ["a"])
    os.utime(installation.store.path(installation.store.put(picture)), (0, 0))
    figures = JOBS["prune"].work(services, conn).to_json()
    assert figures["erased_pictures"] == 1
    assert figures["erased_waiting"] == 0
    assert installation.contains(words("a")) == []


def test_rows_are_kept_for_their_time_and_no_longer(installation: Installation) -> None:
    conn = installation.conn
    for image_id in ("old", "new"):
        installation.index(image_id)
        installation.reject(f"bad {image_id}")
        delete_images(conn, [image_id])
    conn.execute(
        "UPDATE deletion SET deleted_at = now() - interval '401 days' WHERE image_id = 'old'"
    )
    conn.execute(
        "UPDATE rejection SET rejected_at = now() - interval '91 days' WHERE image_id = 'bad old'"
    )
    conn.execute("UPDATE tombstone SET removed_at = now() - interval '8 days'")
    conn.execute(
        "INSERT INTO job_run (job, time_window, outcome, ended_at) SELECT 'j', n, 'done',"
        " now() - interval '500 days' FROM generate_series(1, 3) n"
    )
    conn.execute(
        "INSERT INTO alarm"
        " (generation, monitor, level, effect, effect_limit, p, p_limit, cleared_at)"
        " VALUES (1, 'm', 'page', 1, 1, 1, 1, now() - interval '500 days'),"
        " (1, 'open', 'page', 1, 1, 1, 1, NULL)"
    )
    assert prune_history(conn) == {
        "deleted_images": 1,
        "rejections": 1,
        "tombstones": 2,
        "alarms": 1,
        "job_runs": 2,
    }
    assert list(images_by_id(conn, ["old", "new"])) == ["new"]
    assert [rejection.image_id for rejection in rejections(conn)] == ["bad new"]
    totals = counters.image_totals(conn)
    assert (totals.deleted, totals.rejected) == (1, 1)
    # The newest run window stays: whatever came before it is done.
    assert conn.execute("SELECT time_window FROM job_run").fetchall() == [(3,)]


def test_the_embedded_log_keeps_the_newest_events_within_its_bytes(
    installation: Installation,
) -> None:
    conn, log = installation.conn, installation.log
    messages = [Message(SERVED, f"{number}", b"q" * 1000) for number in range(400)]
    messages += [Message(ACCEPTED, f"{number}", b"a" * 1000) for number in range(400)]
    log.publish(None, messages)
    assert set(trim_events(conn).values()) == {0}
    for topic, consumed in ((SERVED, False), (ACCEPTED, True)):
        execute(conn, "trim_events", topic=topic, bytes=20_000, consumed=consumed)
    bytes_of = "SELECT sum(octet_length(value)) FROM log_event WHERE topic = %s"
    (kept,) = conn.execute(bytes_of, (SERVED,)).fetchone() or (0,)
    assert 4 * 15_000 < kept < 4 * 20_000
    for (topic, partition), end in log.end_offsets([SERVED]).items():
        offsets = [event.offset for event in log.read(topic, partition)]
        assert offsets == list(range(end - len(offsets), end))
    # Nobody has read these: they stay, however many.
    assert conn.execute(bytes_of, (ACCEPTED,)).fetchone() == (400_000,)
    installation.read_everything()
    execute(conn, "trim_events", topic=ACCEPTED, bytes=20_000, consumed=True)
    (kept,) = conn.execute(bytes_of, (ACCEPTED,)).fetchone() or (0,)
    assert kept < 8 * 20_000


def test_a_follower_that_was_away_for_days_loads_anew(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    installation.index("a")
    with psycopg.connect(database, autocommit=True) as conn:
        follower = TrieFollower.open(conn, installation.generation)
        assert len(follower.load().postings) == 1
        assert not follower.changes()
        monkeypatch.setattr("workers.repository.follower._TOO_LATE_S", -1.0)
        with pytest.raises(RetryLaterError, match="load again"):
            follower.changes()
