"""One row for what a generation has of an image: migrated, written by both programs, and unique."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from model.progress import quiet
from ops.backup.backup import back_up
from ops.backup.restore import restore
from ops.backup.verification import verify
from ops.bench.stub import shadow_generation
from schemas.named_sql import migrations
from schemas.records import Assignment, Posting
from tests.integration.test_narrow_schema import accept_old, rewind
from tests.integration.test_repository import SHAPE, accept, accepted, assignment
from tests.stubs import accepted as stored_images
from tests.stubs import services_at
from workers.repository import counters, generations, postings
from workers.repository.bulk_load import InitialLoad, bulk_append
from workers.repository.connection import Connection, connect, migrate, transaction
from workers.repository.follower import TrieFollower
from workers.repository.image_deletion import delete_images
from workers.repository.stored_images import images_by_id

# What programs of schema 18 write for an image, in this order and in one transaction.
OLD_POSTINGS = """
WITH added AS (
    INSERT INTO posting (generation, leaf, image_key, weight, suffix)
    SELECT %s, u.leaf, %s, u.weight, u.suffix
    FROM unnest(%s::bigint[], %s::real[], %s::int[]) AS u (leaf, weight, suffix) ORDER BY u.leaf
    RETURNING leaf, image_key, suffix
)
SELECT count(*), coalesce(sum(posting_hash(image_id, leaf, suffix IS NOT NULL)), 0)
FROM added JOIN image USING (image_key)
"""
OLD_EMBEDDING = """
INSERT INTO image_embedding (generation, image_key, embedding, confidence, trained)
SELECT %s, u.image_key, u.embedding, -1, false
FROM unnest(%s::bigint[], %s::bytea[]) AS u (image_key, embedding)
"""
OLD_REMOVAL = """
WITH removed AS (
    DELETE FROM posting WHERE generation = %s AND image_key = ANY(%s) RETURNING leaf, suffix
)
SELECT count(*) FILTER (WHERE suffix IS NOT NULL), count(*) FROM removed
"""
EMBEDDING = np.full(8, 1 / np.sqrt(8), np.float16)


def write_old(conn: Connection, generation: int, key: int, leaves: Sequence[int]) -> None:
    """Write an image's postings, the first as the primary, and its embedding as schema 18 does."""
    weights = [-float(rank) for rank in range(len(leaves))]
    suffixes = [key] + [None] * (len(leaves) - 1)
    with transaction(conn):
        conn.execute(OLD_POSTINGS, (generation, key, list(leaves), weights, suffixes))
        conn.execute(OLD_EMBEDDING, (generation, [key], [EMBEDDING.tobytes()]))


def found(conn: Connection, generation: int) -> list[tuple[object, ...]]:
    """All that the two tables of schema 18 hold, and the two views since."""
    statements = (
        "SELECT image_key, leaf, weight, suffix FROM posting WHERE generation = %s"
        " ORDER BY image_key, leaf",
        "SELECT image_key, embedding, confidence, trained FROM image_embedding"
        " WHERE generation = %s ORDER BY image_key",
    )
    return [row for text in statements for row in conn.execute(text, (generation,)).fetchall()]


def count_all(conn: Connection, generation: int) -> None:
    """Count up what is there, as whoever wrote it did."""
    there = counters.recount(conn, generation)
    amounts = {"images": there.images, "postings": there.postings, "leaves": there.leaves}
    counters.count_up(conn, generation, amounts | {"checksum": int(there.checksum, 16)})


@contextmanager
def temporary_database(postgres: Any, url: str) -> Iterator[None]:
    """An empty database of that address."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
        yield
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def followed(url: str, generation: int) -> set[tuple[int, int, float, int]]:
    with connect(url) as conn:
        rows = TrieFollower(conn, generation).load().postings
    columns = (rows.image_keys, rows.leaves, rows.weights, rows.suffixes)
    return set(zip(*(column.tolist() for column in columns), strict=True))


def test_rows_of_two_tables_become_one_and_answer_as_before(
    conn: Connection, database: str
) -> None:
    rewind(conn, 18)
    generation = generations.create_generation(conn, SHAPE)
    empty = generations.create_generation(conn, SHAPE)
    keys = accept_old(conn, [accepted(name) for name in "abcd"])
    for key, leaves in zip(keys, ([3], [4, 1], [5, 6, 2], [7, 3, 9, 8, 0]), strict=True):
        write_old(conn, generation, key, leaves)
    before = found(conn, generation)
    assert len(before) == 1 + 2 + 3 + 5 + 4
    changed = "SELECT image_key, changed_by::text FROM image_embedding ORDER BY image_key"
    written = conn.execute(changed).fetchall()
    migrate(conn)
    assert found(conn, generation) == before
    assert conn.execute(changed).fetchall() == written
    assert found(conn, empty) == []
    expected = {
        (key, leaf, weight, -1 if suffix is None else suffix)
        for key, leaf, weight, suffix in before[:11]
    }
    assert followed(database, generation) == expected
    kinds = "SELECT relname FROM pg_class WHERE relname ~ '^(posting|image_emb)' AND relkind <> 'v'"
    assert conn.execute(kinds).fetchall() == []


def test_a_posting_that_is_there_twice_is_moved_once(conn: Connection) -> None:
    """Schema 18 had no key that keeps a leaf from an image's rows."""
    rewind(conn, 18)
    generation = generations.create_generation(conn, SHAPE)
    (key,) = accept_old(conn, [accepted("a")])
    write_old(conn, generation, key, [3, 4])
    conn.execute(OLD_POSTINGS, (generation, key, [3, 4], [-1.0, -1.0], [None, None]))
    assert len(found(conn, generation)) == 5
    count_all(conn, generation)
    assert counters.totals(conn, generation).postings == 4
    migrate(conn)
    assert found(conn, generation)[:2] == [(key, 3, 0.0, key), (key, 4, -1.0, None)]
    assert counters.totals(conn, generation) == counters.recount(conn, generation)
    assert counters.totals(conn, generation).postings == 2


def test_a_backup_of_schema_18_is_restored_and_answers_as_before(
    conn: Connection, database: str, postgres: Any, tmp_path: Path
) -> None:
    """Its tables and files are those that the program of schema 18 wrote."""
    rewind(conn, 18)
    generation = shadow_generation(conn)
    generations.set_state(conn, generation, "live")
    services = services_at(database, tmp_path / "home")
    images = stored_images(services.store, list("abcd"))
    keys = accept_old(conn, images)
    conn.execute("UPDATE image SET state = 'indexed', indexed_at = now()")
    for key, leaves in zip(keys, ([3], [4, 1], [5, 6, 2], [7, 3, 9, 8, 0]), strict=True):
        write_old(conn, generation, key, leaves)
    count_all(conn, generation)
    before, totals = found(conn, generation), counters.totals(conn, generation)
    manifest = back_up(services, tmp_path / "saved", quiet)
    assert (manifest.schema, manifest.pictures) == (18, 4)
    assert (manifest.rows["posting"], manifest.rows["image_embedding"]) == (11, 4)
    target = postgres.get_uri(database=f"restored_{uuid.uuid4().hex[:8]}")
    with temporary_database(postgres, target):
        other = services_at(target, tmp_path / "other")
        restored = restore(other, tmp_path / "saved", verify(tmp_path / "saved", quiet), quiet)
        assert (restored.images, restored.schema) == (4, migrations()[-1].version)
        with connect(target) as own:
            assert found(own, generation) == before
            assert counters.totals(own, generation) == totals == counters.recount(own, generation)
            for image in images_by_id(own, list("abcd")).values():
                assert other.store.exists(image.normalized_uri)
            # Suffixes and keys go on where they were.
            (new,) = accept(own, ["new"])
            assert new > max(keys)
        assert followed(target, generation) == {
            (key, leaf, weight, -1 if suffix is None else suffix)
            for key, leaf, weight, suffix in before[:11]
        }


def test_programs_of_the_schema_before_write_and_read_beside_new_ones(
    conn: Connection, database: str
) -> None:
    generation = generations.create_generation(conn, SHAPE)
    old, new = accept(conn, ["old", "new"])
    write_old(conn, generation, old, [9, 1, 2, 3, 0])
    with connect(database) as own:
        follower = TrieFollower(own, generation)
        assert set(follower.load().postings.leaves.tolist()) == {9, 1, 2, 3, 0}
        postings.append(conn, generation, SHAPE, [assignment(new, 5, 6)])
        assert follower.changes().postings.image_keys.tolist() == [new, new]
        read = "SELECT leaf FROM posting WHERE image_key = %s AND changed_by >= %s ORDER BY leaf"
        assert conn.execute(read, (new, "3")).fetchall() == [(5,), (6,)]
        # Seen by followers when its transaction is told, as before.
        conn.execute(
            "UPDATE posting SET weight = -7, changed_by = pg_current_xact_id()"
            " WHERE image_key = %s AND leaf = 3",
            (old,),
        )
        assert sorted(follower.changes().postings.weights.tolist()) == [-7, -4, -2, -1, 0]
    assert conn.execute(OLD_REMOVAL, (generation, [old, new])).fetchone() == (2, 7)
    conn.execute("DELETE FROM image_embedding WHERE image_key = ANY(%s)", ([old, new],))
    assert found(conn, generation) == []


def test_old_programs_copy_into_a_generation(conn: Connection) -> None:
    generation = generations.create_generation(conn, SHAPE)
    (key,) = accept(conn, ["a"])
    with transaction(conn), conn.cursor() as cursor:
        for columns, row in (
            ("posting (generation, leaf, image_key, weight, suffix)", (generation, 4, key, 0, 0)),
            ("posting (generation, leaf, image_key, weight)", (generation, 5, key, -1)),
            ("image_embedding", (generation, key, EMBEDDING.tobytes(), -1, False)),
        ):
            target = columns
            if "(" not in columns:
                target += " (generation, image_key, embedding, confidence, trained)"
            with cursor.copy(f"COPY {target} FROM STDIN".encode()) as copy:
                copy.write_row(row)
    assert [row[1:] for row in found(conn, generation)[:2]] == [(4, 0.0, 0), (5, -1.0, None)]
    assert conn.execute("SELECT count(*) FROM loose_posting").fetchone() == (0,)


@pytest.mark.parametrize("count", range(1, 7))
def test_any_number_of_postings_is_loaded_appended_and_followed_alike(
    conn: Connection, database: str, count: int
) -> None:
    loaded, appended = (generations.create_generation(conn, SHAPE) for _ in range(2))
    keys = accept(conn, [f"i{number}" for number in range(3)])
    # The second image has one posting only.
    own = [list(range(row, row + (1 if row == 1 else count))) for row in range(3)]
    flat = [
        (leaf, key, -rank)
        for key, leaves in zip(keys, own, strict=True)
        for rank, leaf in enumerate(leaves)
    ]
    leaves, posted_keys, weights = (np.array(column) for column in zip(*flat, strict=True))
    bulk_append(
        conn,
        loaded,
        InitialLoad(
            leaves=leaves,
            posted_keys=posted_keys,
            weights=weights.astype(np.float32),
            suffixes=np.where(weights == 0, 0, -1),
            image_keys=np.array(keys),
            embeddings=np.tile(EMBEDDING, (3, 1)),
            confidences=np.full(3, -1, np.float32),
        ),
    )
    work = [
        Assignment(
            key,
            tuple(Posting(leaf, -float(rank)) for rank, leaf in enumerate(mine)),
            EMBEDDING,
            -1.0,
            trained=True,
        )
        for key, mine in zip(keys, own, strict=True)
    ]
    postings.append(conn, appended, SHAPE, work)
    assert found(conn, loaded) == found(conn, appended)
    assert followed(database, loaded) == followed(database, appended)
    assert len(followed(database, loaded)) == len(flat)
    for generation in (loaded, appended):
        assert counters.totals(conn, generation) == counters.recount(conn, generation)
    delete_images(conn, ["i0", "i1"])
    assert len(followed(database, loaded)) == count
    for generation in (loaded, appended):
        assert counters.totals(conn, generation) == counters.recount(conn, generation)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("leaf, weight, suffix, leaf2, weight2", "3, 0, 9, 3, -1"),
        ("leaf, weight, suffix, leaf2, weight2, leaf3, weight3", "3, 0, 9, 4, -1, 4, -2"),
        ("leaf, weight, suffix, more_leaves, more_weights", "3, 0, 9, '{3}', '{-1}'"),
        ("leaf, weight, suffix, more_leaves, more_weights", "3, 0, 9, '{4,4}', '{-1,-1}'"),
        ("leaf, weight, suffix, more_leaves, more_weights", "3, 0, 9, '{4,5}', '{-1}'"),
        ("leaf, weight", "3, 0"),
        ("leaf2", "3"),
    ],
)
def test_the_database_refuses_an_image_twice_under_a_leaf_and_half_a_posting(
    conn: Connection, columns: str, values: str
) -> None:
    generation = generations.create_generation(conn, SHAPE)
    statement = (
        f"INSERT INTO placement (generation, image_key, embedding, confidence, trained, {columns})"
        f" VALUES ({generation}, 1, '', 0, false, {values})"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(statement.encode())


def test_the_database_refuses_an_image_twice_in_a_generation(conn: Connection) -> None:
    generation = generations.create_generation(conn, SHAPE)
    (key,) = accept(conn, ["a"])
    postings.append(conn, generation, SHAPE, [assignment(key, 1, 2)])
    again = (
        "INSERT INTO placement (generation, image_key, embedding, confidence, trained, leaf,"
        " weight, suffix) VALUES (%s, %s, '', 0, false, 5, 0, 1)"
    )
    with pytest.raises(psycopg.errors.UniqueViolation, match="placement_1_image"):
        conn.execute(again, (generation, key))
    with pytest.raises(psycopg.errors.UniqueViolation, match="has an identifier"):
        conn.execute(OLD_POSTINGS, (generation, key, [5], [0.0], [1]))
    with pytest.raises(psycopg.errors.UniqueViolation, match="loose_posting"):
        conn.execute(OLD_POSTINGS, (generation, key, [2], [0.0], [None]))


def test_an_image_without_a_primary_or_with_two_is_not_loaded() -> None:
    for suffixes, count in (([-1, -1], 0), ([0, 1], 2)):
        with pytest.raises(ValueError, match=f"must have 1 primary, got {count} for image 5"):
            InitialLoad(
                leaves=np.array([3, 4]),
                posted_keys=np.array([5, 5]),
                weights=np.zeros(2, np.float32),
                suffixes=np.array(suffixes),
                image_keys=np.array([5]),
                embeddings=np.zeros((1, 8), np.float16),
                confidences=np.zeros(1, np.float32),
            )
