"""Arrivals, versions, deletions, restarts and switches in any order, against a plain model.

`SIGMA_TEST_EXAMPLES` runs more of them, each of at most thirty steps.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ops.bench.stub import StubAssigner, shadow_generation
from ops.bench.stub_query import stub_searcher_loader
from schemas.events import (
    ACCEPTED,
    ARRIVED,
    DELETED,
    ImageAccepted,
    ImageArrived,
    ImageDeleted,
    decode,
)
from stream.images.decode_pool import DecodePool
from stream.log.event_log import Batch, Message
from stream.log.offsets import rewind
from tests.line import Line
from tests.searchable_model import SearchableModel
from tests.stubs import services_at
from workers import index, intake
from workers.generations import switching
from workers.query.engine import QueryEngine
from workers.query.searcher import Searcher
from workers.query.trie_engine import TrieEngine
from workers.repository import counters, generations
from workers.repository.connection import Connection, connect
from workers.runtime.pictures import read_picture

# Few, so that events of one image meet.
IMAGES = ("a", "b", "c")
VERSIONS = (1, 2, 3)
PICTURES = ("red", "green", "blue", "broken")

# Generations of one example at most: each has tables of its own.
MAX_GENERATIONS = 3

EXAMPLES = int(os.environ.get("SIGMA_TEST_EXAMPLES", "15"))
STEPS = 30

Published = tuple[str, str, bytes]
Posting = tuple[int, int]


class IndexMachine(RuleBasedStateMachine):
    """The line on a database of its own, beside the model of what it has read."""

    def __init__(self, database: str, folder: Path, pool: DecodePool, taken: Counter[str]) -> None:
        super().__init__()
        self.conn: Connection = connect(database)
        self.line = Line(services_at(database, folder), self.conn, pool, StubAssigner.of)
        self.model = SearchableModel()
        self.taken = taken
        self.published: list[Published] = []
        self.content: dict[str, str] = {}
        """SHA-256 of each picture file by its address."""
        self.pixels: dict[str, Any] = {}
        """Of each picture, by SHA-256."""
        self.load = stub_searcher_loader(self.line.services)
        self.searcher = self.open_searcher()

    def open_searcher(self) -> Searcher[QueryEngine]:
        live = generations.live(self.conn)
        assert live is not None
        return self.load(live, None, True)

    def step(self, name: str) -> None:
        self.taken[name] += 1

    @initialize()
    def pictures(self) -> None:
        self.uris = {name: self.line.picture(name) for name in PICTURES}
        (self.line.services.home / "broken.png").write_bytes(b"no picture")
        for name, uri in self.uris.items():
            data = (self.line.services.home / f"{name}.png").read_bytes()
            self.content[uri] = hashlib.sha256(data).hexdigest()

    def send(self, topic: str, document: dict[str, Any]) -> None:
        event = topic, document["image_id"], json.dumps(document).encode()
        self.published.append(event)
        self.line.log.publish(None, [Message(*event)])

    @rule(
        arrivals=st.lists(
            st.tuples(
                st.sampled_from(IMAGES), st.sampled_from(VERSIONS), st.sampled_from(PICTURES)
            ),
            min_size=1,
            max_size=5,
        )
    )
    def arrive(self, arrivals: list[tuple[str, int, str]]) -> None:
        """First arrivals, new versions, and the same ones with the same or other bytes."""
        self.step("arrive")
        for image_id, version, picture in arrivals:
            uri = self.uris[picture]
            self.send(ARRIVED, {"image_id": image_id, "version": version, "uri": uri})

    @rule(
        deletions=st.lists(
            st.tuples(st.sampled_from(IMAGES), st.sampled_from([None, *VERSIONS])),
            min_size=1,
            max_size=2,
        )
    )
    def delete(self, deletions: list[tuple[str, int | None]]) -> None:
        self.step("delete")
        for image_id, version in deletions:
            self.send(DELETED, {"image_id": image_id} | ({"version": version} if version else {}))

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        """An event is published once more."""
        self.step("duplicate")
        topic, key, value = data.draw(st.sampled_from(self.published))
        self.line.log.publish(None, [Message(topic, key, value)])

    @rule(topics=st.sampled_from([(ARRIVED,), (DELETED,), intake.TOPICS]), amount=st.integers(1, 9))
    def take_in(self, topics: tuple[str, ...], amount: int) -> None:
        """Read some events, of arrivals and deletions in any order."""
        self.step("take in")
        self.read(intake.GROUP, topics, amount, self.line.intake.process, self.note_taken_in)

    @rule(amount=st.integers(1, 9))
    def index(self, amount: int) -> None:
        self.step("index")
        self.read(index.GROUP, (ACCEPTED,), amount, self.line.worker.handle, self.note_indexed)

    @rule()
    def settle(self) -> None:
        """Read everything."""
        self.step("settle")
        self.read_all()

    def read_all(self) -> None:
        while self.read(
            intake.GROUP, intake.TOPICS, 32, self.line.intake.process, self.note_taken_in
        ):
            pass
        while self.read(index.GROUP, (ACCEPTED,), 32, self.line.worker.handle, self.note_indexed):
            pass

    @rule(place=st.sampled_from([("intake", ARRIVED), ("intake", DELETED), ("index", ACCEPTED)]))
    def deliver_again(self, place: tuple[str, str]) -> None:
        """A topic is read from its begin."""
        self.step("deliver again")
        rewind(self.line.log, self.conn, *place)
        self.read_all()

    @rule()
    def restart(self) -> None:
        self.step("restart")
        self.line.restart()

    @precondition(lambda self: len(generations.generations(self.conn)) < MAX_GENERATIONS)
    @rule(is_loaded=st.booleans())
    def begin_candidate(self, is_loaded: bool) -> None:
        """A candidate receives arrivals, whether the index worker has loaded it yet or not."""
        self.step("candidate")
        number = shadow_generation(self.conn)
        if is_loaded:
            self.line.worker.models.wait(generations.get(self.conn, number))

    @rule()
    def promote(self) -> None:
        shadows = [one for one in generations.receiving(self.conn) if one.state == "shadow"]
        if shadows:
            self.step("promote")
            store = self.line.services.store
            switching.promote(self.conn, shadows[0].id, store, StubAssigner.of)
            self.follow_live()

    @rule()
    def roll_back(self) -> None:
        if generations.find_fallback(generations.generations(self.conn)) is not None:
            self.step("roll back")
            switching.rollback(self.conn, self.line.services.store, StubAssigner.of)
            self.follow_live()

    def follow_live(self) -> None:
        self.searcher.close()
        self.searcher = self.open_searcher()

    def read(
        self,
        group: str,
        topics: tuple[str, ...],
        amount: int,
        work: Callable[[Connection, Any, Batch], None],
        note: Callable[[Batch], None],
    ) -> bool:
        """Let a worker handle one batch, and the model too; whether there was one."""
        with self.line.log.open_consumer(group, topics) as consumer:
            batch = consumer.poll(max_events=amount, timeout_s=0)
            if batch:
                work(self.conn, self.line.log, batch)
                note(batch)
        return bool(batch)

    def note_taken_in(self, batch: Batch) -> None:
        known = []
        for event in batch.events:
            record = decode(event.topic, event.value)
            if isinstance(record, ImageArrived):
                version = record.image_id, record.version, event.published_at
                # A refused version is known of as well as one that was late.
                if self.model.is_late(*version) or record.uri == self.uris["broken"]:
                    known.append(version)
        for version in known:
            self.model.publish(*version)
        for event in batch.events:
            record = decode(event.topic, event.value)
            if isinstance(record, ImageDeleted):
                self.model.delete(record.image_id, record.version, event.published_at)

    def note_indexed(self, batch: Batch) -> None:
        for event in batch.events:
            record = decode(event.topic, event.value)
            assert isinstance(record, ImageAccepted)
            assert record.published_at is not None
            if record.checksum not in self.pixels:
                picture = read_picture(self.line.services.store, record.normalized_uri)
                self.pixels[record.checksum] = picture
            self.model.index(record.image_id, record.version, record.published_at, record.checksum)

    @invariant()
    def postings_are_those_of_the_model(self) -> None:
        """Ids, versions, bytes and leaves; one primary an image and one image a place."""
        live = generations.live(self.conn)
        assert live is not None
        rows = self.conn.execute(
            "SELECT image_id, version, image_checksum(image), leaf, suffix FROM posting"
            " JOIN image USING (image_key) WHERE generation = %s AND suffix IS NOT NULL",
            (live.id,),
        ).fetchall()
        expected = {}
        for image_id, (version, content) in self.model.searchable().items():
            (inferred,) = StubAssigner.of(live).infer([self.pixels[content]])
            expected[image_id] = version, content, inferred.leaves.postings[0].leaf
        assert {row[0]: row[1:4] for row in rows} == expected
        assert len(rows) == len(expected)
        assert len({row[3:] for row in rows}) == len(rows)

    @invariant()
    def nothing_of_a_removed_image_is_left_in_any_generation(self) -> None:
        (left,) = self.conn.execute(
            "SELECT (SELECT count(*) FROM posting p LEFT JOIN image i USING (image_key)"
            " WHERE i.state IS DISTINCT FROM 'indexed') + (SELECT count(*) FROM image_embedding e"
            " WHERE NOT EXISTS (SELECT FROM posting p WHERE p.generation = e.generation"
            " AND p.image_key = e.image_key))"
        ).fetchone() or (None,)
        assert left == 0

    @invariant()
    def counters_agree_with_the_rows(self) -> None:
        for generation in generations.generations(self.conn):
            counted = counters.totals(self.conn, generation.id)
            scanned = counters.recount(self.conn, generation.id)
            assert (counted.images, counted.postings, counted.leaves, counted.checksum) == (
                scanned.images,
                scanned.postings,
                scanned.leaves,
                scanned.checksum,
            )

    @invariant()
    def who_follows_knows_what_a_fresh_load_knows(self) -> None:
        self.searcher.refresh()
        fresh = self.open_searcher()
        try:
            followed, loaded = in_memory(self.searcher), in_memory(fresh)
        finally:
            fresh.close()
        assert followed == loaded
        keys = {key for key, _ in loaded[0]}
        rows = self.conn.execute(
            "SELECT image_id FROM image WHERE image_key = ANY(%s)", (sorted(keys),)
        ).fetchall()
        assert {image_id for (image_id,) in rows} == set(self.model.searchable())
        assert len(keys) == len(rows)

    def teardown(self) -> None:
        self.searcher.close()
        self.line.close()
        self.conn.close()


def in_memory(searcher: Searcher[QueryEngine]) -> tuple[set[Posting], dict[Posting, int]]:
    """Postings (image key, leaf) of a query worker's trie, and keys by leaf and suffix."""
    engine = searcher.engine
    assert isinstance(engine, TrieEngine)
    leaves = np.flatnonzero(engine.trie.branches.load)
    reached = engine.trie.reached(leaves)
    keys = engine.gallery.keys(reached.slots).tolist()
    postings = list(zip(keys, leaves[reached.source].tolist(), strict=True))
    assert len(set(postings)) == len(postings), "a posting is doubled"
    primaries = {}
    for leaf in leaves.tolist():
        for suffix, slot in engine.trie.suffixes(leaf).items():
            primaries[leaf, suffix] = int(engine.gallery.keys(np.array([slot]))[0])
    assert engine.trie.images == len(primaries)
    return set(postings), primaries


@pytest.fixture
def databases(postgres: Any) -> Callable[[], str]:
    """Makes a fresh database for each example; they end with the server.

    Each DROP DATABASE would be a checkpoint.
    """
    numbers = itertools.count()

    def make() -> str:
        name = f"machine_{next(numbers)}"
        with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE template".encode())
        return str(postgres.get_uri(database=name))

    return make


def test_whatever_happens_in_whatever_order_the_index_is_what_the_model_says(
    databases: Callable[[], str], tmp_path: Path
) -> None:
    numbers = itertools.count()
    taken: Counter[str] = Counter()
    with DecodePool(processes=1) as pool:

        def machine() -> IndexMachine:
            return IndexMachine(databases(), tmp_path / str(next(numbers)), pool, taken)

        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{taken.total()} steps in {next(numbers)} examples: {dict(taken)}")
    assert taken.total() > EXAMPLES * 10
    assert taken.keys() >= {"arrive", "delete", "duplicate", "take in", "index", "settle"}
    assert taken.keys() >= {"deliver again", "restart", "candidate", "promote", "roll back"}
