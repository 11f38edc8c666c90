"""Switches and rollbacks lose nothing, however late and in whatever order images are committed."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.bench.stub import StubAssigner, shadow_generation, stub_generation
from schemas.errors import RefuseToStartError, UsageError, WorkFailedError
from schemas.named_sql import queries
from schemas.records import ByteArray
from stream.log.event_log import EventLog, message
from stream.log.postgres import PostgresLog
from tests.stubs import accepted, held_by, leave_in, services_at
from workers.generations import switching
from workers.generations.image_assigner import ImageAssigner
from workers.generations.inferred import Inferred
from workers.generations.switching import promote, rollback
from workers.index import GROUP, TOPICS, IndexWorker
from workers.repository import generations
from workers.repository.connection import Connection, connect, transaction
from workers.repository.follower import TrieFollower
from workers.repository.generations import Generation
from workers.repository.image_deletion import delete_images
from workers.repository.stored_images import missing_images
from workers.runtime.metrics import IndexMetrics
from workers.runtime.services import Services


@pytest.fixture
def services(database: str, tmp_path: Path) -> Services:
    return services_at(database, tmp_path)


@pytest.fixture
def log(services: Services) -> Iterator[EventLog]:
    made = PostgresLog(services.database_url)
    made.ensure_topics()
    yield made
    made.close()


class Interrupting(StubAssigner):
    """A stub that calls back while it looks at a batch."""

    def __init__(self, generation: Generation, call: Callable[[], None]) -> None:
        super().__init__(generation.shape, generation.id)
        self._call = call

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        self._call()
        return super().infer(pictures)


@dataclass
class Worker:
    """An index worker whose batches are handled one at a time, in this thread."""

    services: Services
    log: EventLog
    conn: Connection
    worker: IndexWorker

    def handle(self, names: Sequence[str]) -> None:
        """Publish images, and handle what is polled as one batch."""
        events = accepted(self.services.store, names)
        self.log.publish(None, [message(event, "same partition") for event in events])
        with self.log.open_consumer(GROUP, TOPICS) as consumer:
            batch = consumer.poll(max_events=100, timeout_s=5)
        assert len(batch) == len(names)
        self.worker.handle(self.conn, self.log, batch)


def worker_of(
    services: Services,
    log: EventLog,
    conn: Connection,
    meanwhile: Callable[[], None] = lambda: None,
) -> Worker:
    """A worker that has loaded what receives now; `meanwhile` is called while the first infers."""
    first = generations.receiving(conn)[0].id

    def load(generation: Generation) -> StubAssigner:
        return Interrupting(generation, meanwhile if generation.id == first else lambda: None)

    made = IndexWorker(services.store, load, IndexMetrics())
    for generation in generations.receiving(conn):
        made.models.wait(generation)
    return Worker(services, log, conn, made)


def blocked(conn: Connection) -> None:
    """Wait until somebody waits for the lock on the generations."""
    deadline = time.monotonic() + 30
    query = """SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
               WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"""
    while conn.execute(query).fetchone() == (0,):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def test_a_batch_begun_before_a_switch_is_appended_to_the_generation_that_is_live_at_its_commit(
    services: Services, log: EventLog, conn: Connection
) -> None:
    first = stub_generation(conn)
    second: list[int] = []

    def switch() -> None:
        with services.connect("switch") as other:
            if not second:
                second.append(shadow_generation(other))
                assert promote(other, second[0], services.store, StubAssigner.of).previous == first

    worker = worker_of(services, log, conn, switch)
    worker.handle(["a", "b", "c"])
    assert held_by(conn, second[0]) == {"a", "b", "c"}
    # The one that was live goes on receiving, as the fallback generation.
    assert held_by(conn, first) == {"a", "b", "c"}


def test_a_batch_that_commits_after_the_last_sweep_is_swept_before_the_switch(
    services: Services, conn: Connection, database: str
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    one, two = accepted(services.store, ["early", "late"])
    with connect(database) as writer, connect(database) as switcher, ThreadPoolExecutor(1) as hands:
        # A worker that has not loaded the candidate: its images are in the live generation only.
        leave_in(writer, first, [one])
        with transaction(writer):
            generations.share_set(writer)
            leave_in(writer, first, [two])
            switched = hands.submit(promote, switcher, second, services.store, StubAssigner.of)
            blocked(conn)
            assert generations.live_number(conn) == first
        assert switched.result(30).caught_up == 2
    assert generations.live_number(conn) == second
    assert held_by(conn, second) == {"early", "late"}


def test_a_generation_that_becomes_shadow_waits_for_batches_on_their_way(
    services: Services, conn: Connection, database: str
) -> None:
    first = stub_generation(conn)
    second = generations.create_generation(conn, generations.get(conn, first).shape)
    with connect(database) as writer, connect(database) as other, ThreadPoolExecutor(1) as hands:
        with transaction(writer):
            leave_in(writer, first, accepted(services.store, ["a"]))
            changed = hands.submit(generations.set_state, other, second, "shadow")
            blocked(conn)
            assert generations.get(conn, second).state == "building"
        changed.result(30)
    # Whoever catches up from now on finds all that came before, and workers see it receive.
    assert [image.image_id for image in missing_images(conn, second)] == ["a"]
    assert [one.id for one in generations.receiving(conn)] == [first, second]


def test_many_batches_and_switches_at_once_leave_every_image_in_every_generation(
    services: Services, log: EventLog, conn: Connection, database: str
) -> None:
    numbers = [stub_generation(conn), shadow_generation(conn)]
    names = [f"image {number}" for number in range(160)]
    log.publish(None, [message(event, event.image_id) for event in accepted(services.store, names)])
    stop = threading.Event()
    workers = [
        threading.Thread(
            target=IndexWorker(services.store, StubAssigner.of, IndexMetrics(), batch=4).run,
            args=(services.connect, services.open_log, stop),
        )
        for _ in "ab"
    ]
    for thread in workers:
        thread.start()
    with connect(database) as switcher:
        for turn in range(6):
            promote(switcher, numbers[(turn + 1) % 2], services.store, StubAssigner.of)
        rollback(switcher, services.store, StubAssigner.of)
        deadline = time.monotonic() + 60
        while missing_in_all(conn, names, numbers):
            assert time.monotonic() < deadline, missing_in_all(conn, names, numbers)
            time.sleep(0.05)
    stop.set()
    for thread in workers:
        thread.join(30)


def test_a_rollback_brings_along_what_the_fallback_generation_lacked(
    services: Services, conn: Connection
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    promote(conn, second, services.store, StubAssigner.of)
    leave_in(conn, second, accepted(services.store, ["a", "b"]))
    done = rollback(conn, services.store, StubAssigner.of)
    assert (done.generation, done.previous, done.caught_up) == (first, second, 2)
    assert held_by(conn, first) == {"a", "b"}


def test_a_promotion_completes_the_generation_that_it_replaces(
    services: Services, conn: Connection
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    leave_in(conn, second, accepted(services.store, ["trained on, never posted"]))
    promote(conn, second, services.store, StubAssigner.of)
    assert held_by(conn, first) == {"trained on, never posted"}


def test_a_rollback_that_lacks_nothing_needs_no_model(services: Services, conn: Connection) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    promote(conn, second, services.store, StubAssigner.of)

    def broken(generation: Generation) -> ImageAssigner:
        raise RefuseToStartError(f"generation {generation.id} is damaged")

    assert rollback(conn, services.store, broken).generation == first
    with pytest.raises(UsageError, match="building"):
        promote(
            conn,
            generations.create_generation(conn, generations.get(conn, first).shape),
            services.store,
            broken,
        )


def test_images_without_a_picture_or_deleted_do_not_hold_a_switch_up(
    services: Services, conn: Connection
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    events = accepted(services.store, ["kept", "lost", "deleted"])
    leave_in(conn, first, events)
    services.store.path(events[1].normalized_uri).unlink()
    delete_images(conn, ["deleted"])
    done = promote(conn, second, services.store, StubAssigner.of)
    assert (done.caught_up, done.unplaced) == (1, 1)
    assert held_by(conn, second) == {"kept"}


def test_a_stream_that_outruns_the_model_is_named_as_the_reason(
    services: Services, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    monkeypatch.setattr(switching, "MAX_SWEEPS", 2)
    waves = iter(range(1000))

    def flood() -> None:
        with services.connect("flood") as other:
            wave = next(waves)
            leave_in(
                other, first, accepted(services.store, [f"{wave} {number}" for number in range(70)])
            )

    def load(generation: Generation) -> ImageAssigner:
        return Interrupting(generation, flood if generation.id == second else lambda: None)

    flood()
    with pytest.raises(WorkFailedError, match="faster than they are assigned"):
        promote(conn, second, services.store, load)
    assert generations.live_number(conn) == first


def test_a_model_that_cannot_be_loaded_leaves_the_live_generation_working(
    services: Services, log: EventLog, conn: Connection
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)

    def load(generation: Generation) -> StubAssigner:
        if generation.id == second:
            raise RefuseToStartError("the folder is empty")
        return StubAssigner(generation.shape, generation.id)

    metrics = IndexMetrics()
    worker = Worker(services, log, conn, IndexWorker(services.store, load, metrics))
    worker.worker.load_receiving(conn)
    worker.handle(["a"])
    assert (held_by(conn, first), held_by(conn, second)) == ({"a"}, set())
    with pytest.raises(RefuseToStartError):
        worker.worker.models.wait(generations.get(conn, second))
    assert metrics.registry.get_sample_value("sigma_index_load_failures_total") >= 1


def missing_in_all(
    conn: Connection, names: Sequence[str], numbers: Sequence[int]
) -> dict[int, int]:
    """How many images each generation still lacks; generations that lack none are left out."""
    return {
        number: lacking
        for number in numbers
        if (lacking := len(set(names) - held_by(conn, number)))
    }


# Images that have no picture and are in all generations, as those of years are.
STORE_OLD = """
WITH stored AS (
    INSERT INTO image (image_id, version, uri, normalized_uri, checksum, width, height, arrived_at,
                       published_at, state, indexed_at)
    SELECT 'old ' || n, 1, '', '', '', 1, 1, now(), now(), 'indexed', now()
    FROM generate_series(%s::int, %s::int) AS n RETURNING image_key
)
INSERT INTO placement (generation, image_key, embedding, confidence, trained)
SELECT g, image_key, '', 0, false FROM stored, unnest(%s::int[]) AS g
"""


def rows_read(conn: Connection, query: str, **parameters: object) -> int:
    """Rows that a query's scans look at, those that they leave out among them."""
    statement = b"EXPLAIN (ANALYZE, FORMAT JSON) " + queries()[query]
    ((document,),) = conn.execute(statement, parameters).fetchall()
    total = 0
    nodes = [document[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "Scan" in node["Node Type"]:
            seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            total += round(seen * node["Actual Loops"])
    return total


def test_what_a_rollback_and_a_gate_read_does_not_grow_with_the_number_of_images(
    services: Services, conn: Connection
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    stored, arrivals = 0, 0
    for images in (3_000, 12_000):
        conn.execute(STORE_OLD, (stored, images - 1, [first, second]))
        stored = images
        conn.execute("ANALYZE")
        live, other = (first, second) if generations.live_number(conn) == first else (second, first)
        promote(conn, other, services.store, StubAssigner.of)
        names = [f"late {number}" for number in range(arrivals, arrivals + 3)]
        arrivals += 3
        # Only the one that is live now gets them.
        leave_in(conn, other, accepted(services.store, names))
        conn.execute("ANALYZE")
        known = generations.watermark(conn, live)
        where = {"above": known.complete_to, "unplaced": list(known.unplaced)}
        assert rows_read(conn, "missing_images", generation=live, amount=64, **where) < 60
        gate = {"candidate": live, "live": other, "ceiling": 1 << 40}
        assert rows_read(conn, "count_lacking_images", **gate, **where) < 60
        assert generations.count_lacking(conn, live, other, 1 << 40) == 3
        result = rollback(conn, services.store, StubAssigner.of)
        assert (result.generation, result.caught_up) == (live, 3)
        assert held_by(conn, live) >= set(names)


# Rows and entries of indexes that scans of all tables have read, whoever asked.
ALL_READ = """
SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables)
     + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)
"""


class Counting:
    """What is read by whom, in rows of all tables, and in how many statements."""

    def __init__(self, readers: Sequence[Connection], conn: Connection) -> None:
        self._readers = readers
        self._conn = conn
        self.statements = 0

    def rows(self) -> int:
        for reader in self._readers:
            # Of what it has read so far, when this statement ends.
            reader.execute("SELECT pg_stat_force_next_flush()")
        ((total,),) = self._conn.execute(ALL_READ).fetchall()
        return int(total)


def test_a_switch_and_those_who_follow_it_read_as_much_of_any_number_of_images(
    services: Services, conn: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    stored = 0
    read: list[int] = []
    asked: list[int] = []
    with connect(database) as switcher, connect(database) as one, connect(database) as other:
        followers = [TrieFollower(one, first), TrieFollower(other, second)]
        counting = Counting([switcher, one, other], conn)
        execute = psycopg.Connection.execute

        def counted(own: Connection, *arguments: Any, **options: Any) -> Any:
            counting.statements += own in (switcher, one, other)
            return execute(own, *arguments, **options)

        for images in (2_000, 16_000):
            conn.execute(STORE_OLD, (stored, images - 1, [first, second]))
            stored = images
            conn.execute("VACUUM ANALYZE")
            # Whoever was told that all these are there has to see for himself once.
            promote(switcher, second, services.store, StubAssigner.of)
            for follower in followers:
                follower.changes()
            before, counting.statements = counting.rows(), 0
            with monkeypatch.context() as patch:
                patch.setattr(psycopg.Connection, "execute", counted)
                for _ in range(2):
                    rollback(switcher, services.store, StubAssigner.of)
                    for follower in followers:
                        follower.live()
                        assert not follower.changes()
                promote(switcher, first, services.store, StubAssigner.of)
            asked.append(counting.statements)
            read.append(counting.rows() - before)
    assert asked[0] == asked[1] > 20
    assert max(read) < 600, read


def test_images_that_could_not_be_assigned_are_tried_again_below_the_watermark(
    services: Services, conn: Connection
) -> None:
    first, second = stub_generation(conn), shadow_generation(conn)
    lost, kept = accepted(services.store, ["lost", "kept"])
    leave_in(conn, first, [lost, kept])
    picture = services.store.get(lost.normalized_uri)
    path = services.home / "images" / lost.normalized_uri.removeprefix("store:///")
    path.unlink()
    assert promote(conn, second, services.store, StubAssigner.of).unplaced == 1
    assert held_by(conn, second) == {"kept"}
    query = "SELECT complete_to, cardinality(unplaced) FROM generation WHERE id = %s"
    ((complete_to, unplaced),) = conn.execute(query, (second,)).fetchall()
    assert complete_to > 0
    assert unplaced == 1
    path.write_bytes(picture)
    assert [image.image_id for image in missing_images(conn, second)] == ["lost"]
    promote(conn, first, services.store, StubAssigner.of)
    assert held_by(conn, second) == {"lost", "kept"}
    assert conn.execute(query, (second,)).fetchone() == (complete_to, 0)


def test_a_watermark_is_not_lowered_by_one_who_was_slower(conn: Connection) -> None:
    number = stub_generation(conn)
    generations.set_complete(conn, number, 200, {150})
    generations.set_complete(conn, number, 100, set())
    query = "SELECT complete_to, unplaced FROM generation WHERE id = %s"
    assert conn.execute(query, (number,)).fetchone() == (200, [150])
