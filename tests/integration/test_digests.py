"""Checksums as bytes (migration 20): read as before by every query, beside older programs too."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from schemas.events import ImageAccepted
from schemas.named_sql import queries
from tests.integration.test_narrow_schema import accept_old, rewind
from tests.integration.test_repository import SHAPE, accepted, assignment
from workers.repository import generations, postings
from workers.repository.connection import Connection, migrate
from workers.repository.image_acceptance import accept_images
from workers.repository.image_deletion import delete_images
from workers.repository.image_records import image_records
from workers.repository.image_rows import lock_images
from workers.repository.stored_images import images_by_id, images_by_key, missing_images

ONE, TWO, THREE = ("1f" * 32, "2e" * 32, "3d" * 32)


def with_bytes(image_id: str, checksum: str, version: int = 1) -> ImageAccepted:
    return replace(accepted(image_id, version), checksum=checksum)


def stored(conn: Connection, image_id: str) -> tuple[str, bytes | None]:
    """What is in the row: letters and bytes."""
    row = conn.execute("SELECT checksum, digest FROM image WHERE image_id = %s", (image_id,))
    ((letters, digest),) = row.fetchall()
    return letters, digest


def read(conn: Connection, names: Sequence[str]) -> list[str]:
    """Checksums of images as all queries read them, which must agree."""
    by_id, locked = images_by_id(conn, names), lock_images(conn, names)
    keys = [by_id[name].image_key for name in names]
    by_key = images_by_key(conn, keys)
    found = [by_id[name].checksum for name in names]
    assert found == [by_key[key].checksum for key in keys]
    assert found == [locked[name].checksum for name in names]
    return found


def upgrade_among_programs(conn: Connection, schema: int, names: Sequence[str] = ()) -> None:
    """A database of an earlier schema, with images, that is upgraded while its programs run."""
    rewind(conn, schema)
    accept_old(conn, [with_bytes(name, ONE) for name in names])
    migrate(conn)


def a_day_later(conn: Connection) -> None:
    conn.execute("UPDATE schema_version SET applied_at = applied_at - interval '25 hours'")


def test_a_checksum_takes_32_bytes_and_is_read_in_hexadecimal(conn: Connection) -> None:
    generation = generations.create_generation(conn, SHAPE)
    (key,) = (image.image_key for image in accept_images(conn, [with_bytes("a", ONE)]))
    assert stored(conn, "a") == ("", bytes.fromhex(ONE))
    assert read(conn, ["a"]) == [ONE]
    assert [image.checksum for image in image_records(conn, ["a"])] == [ONE]
    assert [image.checksum for image in missing_images(conn, generation)] == [ONE]
    # The same again is the same, and other bytes under the same version are a conflict.
    (again,) = accept_images(conn, [with_bytes("a", ONE)])
    assert (again.image_key, again.conflict) == (key, None)
    assert accept_images(conn, [with_bytes("a", TWO)])[0].conflict == ONE
    accept_images(conn, [with_bytes("a", TWO, version=2)])
    assert read(conn, ["a"]) == [TWO]
    delete_images(conn, ["a"])
    assert stored(conn, "a") == ("", None)
    assert read(conn, ["a"]) == [""]


def test_rows_of_the_schema_before_read_the_same_and_stay(conn: Connection) -> None:
    upgrade_among_programs(conn, 19, ["a", "b"])
    a_day_later(conn)
    assert stored(conn, "a") == (ONE, None)
    assert accept_images(conn, [with_bytes("a", TWO)])[0].conflict == ONE
    accept_images(conn, [with_bytes("b", TWO, version=2), with_bytes("c", THREE)])
    assert read(conn, ["a", "b", "c"]) == [ONE, TWO, THREE]
    assert stored(conn, "b") == ("", bytes.fromhex(TWO))


@pytest.mark.parametrize("schema", [18, 19])
def test_letters_are_written_while_programs_of_an_earlier_schema_may_run(
    conn: Connection, schema: int
) -> None:
    upgrade_among_programs(conn, schema)
    accept_images(conn, [with_bytes("a", ONE)])
    assert stored(conn, "a") == (ONE, None)
    a_day_later(conn)
    accept_images(conn, [with_bytes("b", ONE)])
    assert stored(conn, "b") == ("", bytes.fromhex(ONE))


def test_what_older_programs_write_over_bytes_takes_them_away(conn: Connection) -> None:
    generation = generations.create_generation(conn, SHAPE)
    first, _ = accept_images(conn, [with_bytes("a", ONE), with_bytes("b", ONE)])
    accept_old(conn, [with_bytes("a", TWO, version=2)])
    assert stored(conn, "a") == (TWO, None)
    assert read(conn, ["a"]) == [TWO]
    old_deletion = "UPDATE image SET state = 'deleted', checksum = '' WHERE image_id = 'b'"
    conn.execute(old_deletion.encode())
    assert stored(conn, "b") == ("", None)
    # Marking as indexed keeps them.
    (image,) = accept_images(conn, [with_bytes("c", THREE)])
    postings.append(conn, generation, SHAPE, [assignment(image.image_key, 1)])
    assert stored(conn, "c") == ("", bytes.fromhex(THREE))
    assert first.is_new


@pytest.mark.parametrize("query", ["images_by_key", "images_by_id"])
def test_reading_a_checksum_is_no_call_a_row(conn: Connection, query: str) -> None:
    """PostgreSQL puts the expression in place of the function."""
    parameters = {"image_keys": [1], "image_ids": ["a"]}
    plan = conn.execute(b"EXPLAIN VERBOSE " + queries()[query], parameters).fetchall()
    assert "encode(" in str(plan)
    assert "image_checksum" not in str(plan)
