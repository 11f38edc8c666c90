"""The narrow indexes of pictures, and rows that are written once (migration 18)."""

from collections.abc import Sequence

import numpy as np
import pytest

from schemas.events import ImageAccepted
from schemas.named_sql import queries
from tests.integration.test_repository import SHAPE, accept, accepted, assignment
from workers.repository import generations, postings
from workers.repository.bulk_load import InitialLoad
from workers.repository.connection import Connection, migrate_to, transaction
from workers.repository.image_acceptance import accept_images

PICTURES = [f"file:///store/{name}.png" for name in "abcdef"]


def rewind(conn: Connection, version: int) -> None:
    """An empty database of an older schema."""
    conn.execute("DROP SCHEMA public CASCADE")
    conn.execute("CREATE SCHEMA public")
    with transaction(conn):
        migrate_to(conn, version)


def accept_old(conn: Connection, images: Sequence[ImageAccepted]) -> list[int]:
    """Store images as programs did before migration 20; returns their keys."""
    keys = []
    for image in images:
        row = conn.execute(
            "INSERT INTO image (image_id, version, uri, normalized_uri, checksum, width, height,"
            " arrived_at, published_at) VALUES (%s, %s, %s, %s, %s, 8, 8, %s, now())"
            " ON CONFLICT (image_id) DO UPDATE SET image_key = DEFAULT, version = excluded.version,"
            " state = excluded.state, normalized_uri = excluded.normalized_uri,"
            " checksum = excluded.checksum WHERE image.version < excluded.version"
            " RETURNING image_key",
            (
                image.image_id,
                image.version,
                image.uri,
                image.normalized_uri,
                image.checksum,
                image.arrived_at,
            ),
        ).fetchone()
        assert row is not None
        keys.append(int(row[0]))
    return keys


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


def test_an_image_that_is_indexed_as_it_comes_is_written_once(conn: Connection) -> None:
    generation = generations.create_generation(conn, SHAPE)
    with transaction(conn):
        (stored,) = accept_images(conn, [accepted("a")], indexed=True)
        postings.append(conn, generation, SHAPE, [assignment(stored.image_key, 1)])
    conn.execute("SELECT pg_stat_force_next_flush()")
    counts = "SELECT n_tup_ins, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'image'"
    assert conn.execute(counts).fetchone() == (1, 0)
    times = "SELECT state::text, indexed_at IS NOT NULL FROM image"
    assert conn.execute(times).fetchone() == ("indexed", True)
    # A new version is indexed only when it is brought into a generation too.
    accept_images(conn, [accepted("a", version=2)])
    assert conn.execute(times).fetchone() == ("accepted", False)
