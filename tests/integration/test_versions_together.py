"""Versions of one image: which one is searchable, and under whose leaves, in any order."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.events import ARRIVED, DELETED
from tests.line import Line, open_line
from workers.repository.connection import Connection
from workers.repository.refused_versions import RefusedVersion, note_refused


@pytest.fixture
def line(database: str, tmp_path: Path, conn: Connection) -> Iterator[Line]:
    with open_line(database, tmp_path, conn) as made:
        yield made


def test_an_image_is_posted_under_the_leaves_of_its_own_newest_picture(line: Line) -> None:
    """Whatever the order in which versions are read, and in one batch or in several."""
    orders = list(itertools.permutations([1, 2, 3]))
    for number, order in enumerate(orders):
        for version in order:
            uri = line.picture(f"picture {version}")
            line.send(ARRIVED, {"image_id": f"a {number}", "uri": uri, "version": version})
    line.run()
    assert line.searchable() == {f"a {number}": 3 for number in range(len(orders))}
    leaves = line.conn.execute(
        "SELECT array_agg(leaf ORDER BY leaf) FROM posting WHERE generation = %s"
        " GROUP BY image_key",
        (line.generation,),
    ).fetchall()
    assert len({tuple(row[0]) for row in leaves}) == 1


@pytest.mark.parametrize("first", [ARRIVED, DELETED])
@pytest.mark.parametrize("stage", ["intake", "index"])
def test_a_version_that_was_unreadable_before_its_deletion_stays_deleted(
    line: Line, first: str, stage: str
) -> None:
    """Published broken, deleted, published again: the result is one, whatever is read first."""
    uri = line.picture("a")
    line.arrive("a")
    line.send(ARRIVED, {"image_id": "a", "uri": uri if stage == "index" else "x", "version": 2})
    if stage == "index" and first == ARRIVED:
        line.take_in()
        # What intake accepted is lost before it is indexed.
        for picture in (line.services.home / "images").rglob("*.png"):
            picture.unlink()
        line.index()
    line.delete("a")
    line.send(ARRIVED, {"image_id": "a", "uri": uri, "version": 2})
    line.take_in([first])
    line.run()
    assert line.searchable() == {}
    line.arrive("a", version=3)
    line.run()
    assert line.searchable() == {"a": 3}


def test_a_version_that_is_refused_after_its_deletion_was_read_takes_its_copy_along(
    line: Line,
) -> None:
    """The refusal is committed last, of all three; until then nothing says that there was one."""
    line.delete("a")
    line.arrive("a", version=2)
    line.run()
    assert line.searchable() == {"a": 2}
    ((moment,),) = line.conn.execute("SELECT published_at FROM deletion").fetchall()
    note_refused(line.conn, [RefusedVersion("a", 2, moment)])
    assert line.searchable() == {}
