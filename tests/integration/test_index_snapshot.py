"""Index snapshots: what a worker that starts from one holds is what a fresh load holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from model.network.sketch import Sketch
from schemas.identifiers import IdentifierShape
from schemas.records import IntArray
from tests.integration.test_repository import accept_one, accepted, assignment
from workers.query import index_snapshot
from workers.query.array_file import read_arrays, write_arrays
from workers.query.gallery import Gallery
from workers.query.generation_index import GenerationIndex
from workers.query.index_snapshot import IndexSnapshot, delete_unused_snapshots
from workers.repository import generations, postings
from workers.repository.connection import Connection, connect, transaction
from workers.repository.follower import TrieFollower
from workers.repository.image_deletion import delete_images

SHAPE = IdentifierShape((3, 4, 2, 5), 6)
WIDTH = 8
SKETCH = Sketch(np.eye(WIDTH, dtype=np.float32)[:2])


class Installation:
    """A generation in a database, and indexes of it."""

    def __init__(self, conn: Connection, database: str, folder: Path) -> None:
        self.conn = conn
        self.database = database
        self.folder = folder
        self.generation = generations.create_generation(conn, SHAPE)
        self.snapshot = IndexSnapshot(folder, self.generation, self.connect, least_images=1)
        self.rng = np.random.default_rng(0)
        self.names = 0

    def connect(self, name: str = "test") -> Connection:
        return connect(self.database, name=name)

    def add(self, count: int, conn: Connection | None = None) -> list[str]:
        names = [f"i{number}" for number in range(self.names, self.names + count)]
        self.names += count
        for name in names:
            self.put(name, 1, conn)
        return names

    def put(self, name: str, version: int, conn: Connection | None = None) -> None:
        image = replace(accepted(name, version), metadata={"name": name, "version": version})
        own = conn or self.conn
        key = accept_one(own, image).image_key
        leaves = self.rng.permutation(SHAPE.leaves)[:3].tolist()
        own_assignment = replace(
            assignment(key, *leaves), embedding=self.rng.standard_normal(WIDTH).astype(np.float16)
        )
        postings.append(own, self.generation, SHAPE, [own_assignment])

    def index(self, *, fresh: bool = False) -> GenerationIndex:
        index = GenerationIndex(SHAPE, WIDTH, Gallery.open(self.folder), guided=True, sketch=SKETCH)
        with self.connect() as own:
            follower = TrieFollower(own, self.generation)
            if fresh:
                index.apply(follower.load(sink=index.add_embeddings))
            else:
                self.snapshot.fill(index, follower)
        return index


@pytest.fixture
def installation(conn: Connection, database: str, tmp_path: Path) -> Installation:
    return Installation(conn, database, tmp_path)


def content(index: GenerationIndex) -> dict[str, Any]:
    """Everything that an index answers by, by image key."""
    trie, gallery = index.trie, index.gallery
    reached = trie.reached(np.arange(SHAPE.leaves))
    keys = gallery.keys(reached.slots).tolist()
    slots = trie.searchable_slots()
    names = index.metadata.allowed(_named(), gallery.size)[slots]
    assert index.means is not None
    assert index.sketches is not None
    sketches = index.sketches.to_arrays(gallery.size)["table"]
    return {
        "postings": sorted(
            zip(reached.source.tolist(), keys, reached.weights.tolist(), strict=True)
        ),
        "suffixes": [
            {suffix: int(gallery.keys(np.array([slot]))[0]) for suffix, slot in own.items()}
            for own in map(trie.suffixes, range(SHAPE.leaves))
        ],
        "embeddings": {
            key: gallery.embeddings[slot].tobytes()
            for key, slot in zip(gallery.keys(slots).tolist(), slots.tolist(), strict=True)
        },
        "sketches": {
            key: sketches[slot].tobytes()
            for key, slot in zip(gallery.keys(slots).tolist(), slots.tolist(), strict=True)
        },
        "known": (gallery.slots(np.arange(2000)) >= 0).tolist(),
        "named": sorted(gallery.keys(slots[names]).tolist()),
        "images": trie.images,
        "load": trie.branches.load.tolist(),
        "primary load": trie.primaries.load.tolist(),
        "below": [trie.branches.below(level, _all(level)).tolist() for level in range(5)],
        "leaves": trie.branches.leaves,
        "counts": [counts.tolist() for counts in index.means.to_arrays().values()][1::2],
    }


def _all(level: int) -> Any:
    import torch

    return torch.arange(SHAPE.prefixes(level))


def _named() -> Any:
    from schemas.filters import Exists

    return Exists("name")


def check(installation: Installation) -> GenerationIndex:
    index, fresh = installation.index(), installation.index(fresh=True)
    assert content(index) == content(fresh)
    assert index.means is not None
    assert fresh.means is not None
    for name, sums in fresh.means.to_arrays().items():
        np.testing.assert_allclose(index.means.to_arrays()[name], sums, atol=1e-4)
    fresh.close()
    return index


def warnings(logs: list[Any]) -> list[str]:
    return [entry["reason"] for entry in logs if entry["log_level"] == "warning"]


def test_a_snapshot_and_what_came_since_equal_a_fresh_load(installation: Installation) -> None:
    # After the larger ones many slots are free.
    for count in (60, 9, 40, 9, 40, 9):
        names = installation.add(count)
        with installation.connect() as slow, transaction(slow):
            # Not visible to the snapshot, and committed after it: numbers of transactions do not
            # say what a snapshot has.
            installation.add(3, slow)
            installation.add(5)
            check(installation).close()
        with capture_logs() as logs:
            index = check(installation)
        used = [entry for entry in logs if entry["event"] == "index snapshot used"]
        assert [entry["caught_up"] for entry in used] == [3]
        # What is restored goes on: it is changed and written again.
        index.close()
        delete_images(installation.conn, names[:-8])
        installation.put(names[-1], 2)
    check(installation).close()


def test_a_renewed_snapshot_leaves_nothing_to_catch_up(installation: Installation) -> None:
    installation.add(80)
    installation.index().close()
    installation.add(5)
    delete_images(installation.conn, ["i1", "i2"])
    index = installation.index()
    installation.snapshot.renew(index)
    with capture_logs() as logs:
        check(installation).close()
    assert [entry["caught_up"] for entry in logs if "caught_up" in entry] == [0]
    index.close()


def test_slots_of_deleted_images_are_used_again_after_a_restart(installation: Installation) -> None:
    names = installation.add(40)
    installation.index().close()
    delete_images(installation.conn, names[:30])
    installation.index().close()
    installation.add(30)
    index = installation.index()
    assert index.gallery.size == 40
    index.close()


def _flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def _other(**changes: object) -> Any:
    def rewrite(path: Path) -> None:
        file = read_arrays(path)
        arrays = {name: values.copy() for name, values in file.arrays.items()}
        write_arrays(path, {**file.about, **changes}, arrays)

    return rewrite


def _moved(**changes: object) -> Any:
    def rewrite(path: Path) -> None:
        moment = read_arrays(path).about["followed_to"]
        _other(followed_to={**moment, **changes})(path)

    return rewrite


def _less(path: Path) -> None:
    """Without a posting that was there: digests are right, and the sum is wrong."""
    file = read_arrays(path)
    arrays = {name: values.copy() for name, values in file.arrays.items()}
    leaf = int(np.flatnonzero(arrays["trie.load"])[0])
    arrays["trie.load"][leaf] -= 1
    write_arrays(path, file.about, arrays)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        *[(lambda path, place=place: _flip(path, place), "") for place in (0, 0.01, 0.3, 0.6, 1)],
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-700]), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), ""),
        (_other(format=0), "format"),
        (_other(codes=[1, 2, 3, 4]), "codes"),
        (_other(generation=99), "generation"),
        (_moved(cluster="another"), "restored or is another"),
        (_moved(epoch=99), "restored or is another"),
        (_moved(snapshot="900000:900000:"), "set back"),
        (_moved(read_at="2020-01-01T00:00:00+00:00"), "too long ago"),
        (_less, "images and postings"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_dropped_for_a_full_load_with_one_line(
    installation: Installation, damage: Any, reason: str
) -> None:
    installation.add(50)
    installation.index().close()
    damage(installation.snapshot.path)
    with capture_logs() as logs:
        check(installation).close()
    (said,) = warnings(logs)
    assert reason in said
    with capture_logs() as logs:
        check(installation).close()
    # The full load has put a good one in its place.
    assert not warnings(logs)
    assert [entry["caught_up"] for entry in logs if "caught_up" in entry] == [0]


@pytest.mark.parametrize("arrived", [0, 40])
def test_a_snapshot_without_images_is_read_and_followed_from(
    installation: Installation, arrived: int, tmp_path: Path
) -> None:
    # Of a generation that never had one, and of one whose images were all deleted.
    if arrived:
        names = installation.add(arrived)
        installation.index().close()
        delete_images(installation.conn, names)
    installation.snapshot = IndexSnapshot(
        tmp_path, installation.generation, installation.connect, least_images=0
    )
    installation.index().close()
    with capture_logs() as logs:
        index = check(installation)
    assert [entry["caught_up"] for entry in logs if "caught_up" in entry] == [0]
    assert (index.trie.images, index.trie.postings) == (0, 0)
    index.close()
    installation.add(45)
    with capture_logs() as logs:
        index = check(installation)
    assert [entry["caught_up"] for entry in logs if "caught_up" in entry] == [45]
    assert not warnings(logs)
    # Freed slots are used first.
    assert (index.trie.images, index.gallery.size) == (45, 45)
    index.close()


def test_a_snapshot_that_ends_anywhere_before_its_end_is_not_read(
    installation: Installation, tmp_path: Path
) -> None:
    installation.add(50)
    installation.index().close()
    content = installation.snapshot.path.read_bytes()
    length = int.from_bytes(content[16:24], "little")
    header = json.loads(content[56 : 56 + length])
    # After the mark, the length and the digest of the header, and in the middle of each.
    places = {1, 8, 16, 20, 24, 40, 56, 56 + length // 2, 56 + length}
    end = 56 + length
    for entry in header["arrays"]:
        begin = end + -end % 64
        end = begin + entry["bytes"]
        if entry["bytes"]:
            places |= {begin, begin + 1, (begin + end) // 2, end - 1}
    assert end == len(content)
    cut = tmp_path / "cut"
    for place in sorted(places):
        cut.write_bytes(content[:place])
        with pytest.raises(ValueError, match="delete"):
            read_arrays(cut)
    cut.write_bytes(content)
    assert read_arrays(cut).about["images"] == 50


def test_a_snapshot_of_another_version_is_replaced_though_it_is_whole(
    installation: Installation,
) -> None:
    installation.add(50)
    installation.index().close()
    path = installation.snapshot.path
    file = read_arrays(path)
    # An earlier one that knew nothing of guides, and a later one with something more.
    earlier = {name: value for name, value in file.about.items() if name != "guided"}
    arrays = {name: values.copy() for name, values in file.arrays.items()}
    for about, own, reason in (
        (earlier, arrays, "its guided must be True, got None"),
        ({**file.about, "format": 4}, {**arrays, "more": np.arange(3)}, "its format must be 3"),
        ({**file.about, "sketch": 0}, arrays, "its sketch must be 2, got 0"),
        ({}, {}, "its format must be 3, got None"),
    ):
        write_arrays(path, about, own)
        with capture_logs() as logs:
            check(installation).close()
        (said,) = warnings(logs)
        assert reason in said
    mark = bytearray(path.read_bytes())
    mark[13:14] = b"2"
    path.write_bytes(mark)
    with capture_logs() as logs:
        check(installation).close()
    assert "an array file of this version" in warnings(logs)[0]


def test_a_small_index_has_no_snapshot_and_those_of_other_generations_go(
    installation: Installation, tmp_path: Path
) -> None:
    installation.snapshot = IndexSnapshot(tmp_path, installation.generation, installation.connect)
    installation.add(5)
    installation.index().close()
    assert not installation.snapshot.path.exists()
    for number in (1, 2, 3):
        write_arrays(tmp_path / f"index-{number}", {}, {})
    delete_unused_snapshots(tmp_path, {2})
    assert [path.name for path in tmp_path.glob("index-*")] == ["index-2"]


def test_a_folder_that_cannot_be_written_costs_one_line(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(index_snapshot, "write_arrays", full)
    installation.add(5)
    with capture_logs() as logs:
        check(installation).close()
    assert warnings(logs) == ["no space left on device"]


def test_nothing_of_a_deleted_images_metadata_is_in_the_file(installation: Installation) -> None:
    installation.put("a-secret-name", 1)
    installation.index().close()
    assert b"a-secret-name" not in installation.snapshot.path.read_bytes()


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.empty(0, np.float16),
        np.zeros((0, 3), np.uint16),
        np.array([(1, [0.5, 2.0])], [("key", np.int64), ("embedding", np.float16, (2,))]),
    ],
)
def test_arrays_come_back_as_they_were_written(tmp_path: Path, values: IntArray) -> None:
    write_arrays(tmp_path / "file", {"a": [1, "ü"]}, {"x": values, "y": np.arange(3)})
    file = read_arrays(tmp_path / "file")
    assert file.about == {"a": [1, "ü"]}
    assert file.arrays["x"].dtype == values.dtype
    np.testing.assert_array_equal(file.arrays["x"], values)
    np.testing.assert_array_equal(file.arrays["y"], np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
