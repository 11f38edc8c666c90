"""A database with rows is migrated to narrower indexes and answers as before (migration 18)."""

import numpy as np
import pytest

from schemas.named_sql import queries
from tests.integration.test_repository import SHAPE, accept, assignment
from workers.repository import counters, generations, postings
from workers.repository.bulk_load import InitialLoad
from workers.repository.connection import Connection, migrate_to, transaction
from workers.repository.erasures import used_pictures
from workers.repository.image_deletion import delete_images

PICTURES = [f"file:///store/{name}.png" for name in "abcdef"]


def rewind(conn: Connection, version: int) -> None:
    """An empty database of an older schema."""
    conn.execute("DROP SCHEMA public CASCADE")
    conn.execute("CREATE SCHEMA public")
    with transaction(conn):
        migrate_to(conn, version)


def answers(conn: Connection, generation: int, keys: list[int]) -> list[object]:
    """What the queries that use the changed indexes find."""
    found: list[object] = [counters.totals(conn, generation), counters.recount(conn, generation)]
    found += [postings.postings_of(conn, generation, keys), used_pictures(conn, PICTURES)]
    for leaf in range(SHAPE.leaves):
        found += [postings.image_at(conn, generation, leaf, suffix) for suffix in range(4)]
    return found


def test_rows_of_the_older_schema_are_found_after_the_migration(conn: Connection) -> None:
    rewind(conn, 17)
    old = generations.create_generation(conn, SHAPE)
    keys = accept(conn, list("abcde"))
    postings.append(conn, old, SHAPE, [assignment(key, key % 3, 9, 12) for key in keys])
    delete_images(conn, ["b"])
    before = answers(conn, old, keys)
    with transaction(conn):
        migrate_to(conn, 18)
    assert answers(conn, old, keys) == before
    # The old partition has its columns in the old order, a new one in its own.
    new = generations.create_generation(conn, SHAPE)
    for generation in (old, new):
        keys += accept(conn, [f"{generation}"])
        postings.append(conn, generation, SHAPE, [assignment(keys[-1], 7, 8)])
        (found,) = postings.postings_of(conn, generation, keys[-1:]).values()
        assert [(each.leaf, each.weight) for each in found] == [(7, 0.0), (8, -0.5)]
    delete_images(conn, ["a"])
    assert used_pictures(conn, PICTURES) == set(PICTURES[2:5])
    for generation in (old, new):
        assert counters.totals(conn, generation) == counters.recount(conn, generation)


@pytest.mark.parametrize("query", ["used_pictures", "images_with_pictures"])
def test_pictures_are_found_by_their_index(conn: Connection, query: str) -> None:
    conn.execute("SET enable_seqscan = off")
    plan = conn.execute(b"EXPLAIN " + queries()[query], {"pictures": PICTURES}).fetchall()
    assert "image_stored_picture" in str(plan)
    assert "Index Cond: (hashtextextended(normalized_uri" in str(plan)


def test_an_image_that_is_indexed_leaves_the_indexes_alone(conn: Connection) -> None:
    """Its page has room, and no column of an index or of a predicate changes."""
    generation = generations.create_generation(conn, SHAPE)
    (key,) = accept(conn, ["a"])
    postings.append(conn, generation, SHAPE, [assignment(key, 1)])
    conn.execute("SELECT pg_stat_force_next_flush()")
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'image'"
    assert conn.execute(counts).fetchone() == (1, 1)


def test_an_image_is_not_twice_under_a_leaf() -> None:
    with pytest.raises(ValueError, match="must differ, got 3 twice for image 5"):
        InitialLoad(
            leaves=np.array([3, 1, 3, 3]),
            posted_keys=np.array([5, 5, 5, 6]),
            weights=np.zeros(4, np.float32),
            suffixes=np.array([0, -1, -1, 1]),
            image_keys=np.array([5, 6]),
            embeddings=np.zeros((2, 8), np.float16),
            confidences=np.zeros(2, np.float32),
        )
