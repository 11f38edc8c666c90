"""Versions of one image that are read together: each answer shows the newest one's pixels."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.line import Line, open_line
from workers.repository.connection import Connection


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
            line.send(
                "sigma.images.arrived", {"image_id": f"a {number}", "uri": uri, "version": version}
            )
    line.run()
    assert line.searchable() == {f"a {number}": 3 for number in range(len(orders))}
    leaves = line.conn.execute(
        "SELECT array_agg(leaf ORDER BY leaf) FROM posting WHERE generation = %s"
        " GROUP BY image_key",
        (line.generation,),
    ).fetchall()
    assert len({tuple(row[0]) for row in leaves}) == 1
