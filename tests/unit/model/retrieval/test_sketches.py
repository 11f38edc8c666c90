"""Sketches: which images of a leaf are nearer than the others, from a few bytes of each."""

from pathlib import Path

import numpy as np
import pytest

from model.network.sketch import Sketch
from model.retrieval.shards import Reached
from model.retrieval.sketches import SketchesBySlot
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray, HalfArray

WIDTH, DIRECTIONS = 64, 8


def pictures(count: int, seed: int) -> HalfArray:
    """(count, WIDTH) unit vectors that differ mostly in a few directions, around a mean."""
    rng = np.random.default_rng(seed)
    spread = np.linalg.qr(np.random.default_rng(99).standard_normal((WIDTH, WIDTH)))[0]
    sizes = np.where(np.arange(WIDTH) < DIRECTIONS, 1.0, 0.05)
    rows = (rng.standard_normal((count, WIDTH)) * sizes + 0.5) @ spread
    vectors: HalfArray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return vectors


def test_the_directions_are_those_in_which_pictures_differ_most() -> None:
    embeddings = pictures(2000, 0)
    sketch = Sketch.fit(embeddings, seed=0)
    assert sketch.directions.shape == (DIRECTIONS, WIDTH)
    assert sketch.directions @ sketch.directions.T == pytest.approx(np.eye(DIRECTIONS), abs=1e-5)
    centred = embeddings.astype(np.float32) - embeddings.astype(np.float32).mean(0)
    kept = np.square(centred @ sketch.directions.T).sum() / np.square(centred).sum()
    assert kept > 0.95
    assert np.array_equal(sketch.directions, Sketch.fit(embeddings, seed=0).directions)


def test_few_and_narrow_embeddings_have_a_sketch_too() -> None:
    assert Sketch.fit(pictures(3, 0), seed=0).directions.shape == (DIRECTIONS, WIDTH)
    assert Sketch.fit(np.eye(4, dtype=np.float16), seed=0).width == 1


def test_a_sketch_tells_cosines_apart_within_its_directions() -> None:
    embeddings = pictures(500, 1).astype(np.float32)
    sketch = Sketch.fit(pictures(2000, 0), seed=0)
    query = embeddings[0]
    told = sketch.of_images(embeddings).astype(np.float32) @ sketch.of_query(query)
    within = (embeddings @ sketch.directions.T) @ (sketch.directions @ query)
    assert told == pytest.approx(within, abs=0.02)


def test_an_image_has_one_sketch_whatever_comes_beside_it() -> None:
    embeddings = pictures(700, 2).astype(np.float32)
    sketch = Sketch.fit(pictures(2000, 0), seed=0)
    alone = np.concatenate([sketch.of_images(row[None]) for row in embeddings])
    assert np.array_equal(sketch.of_images(embeddings), alone)


def deviations(
    table: SketchesBySlot, query: FloatArray, slots: list[int], source: list[int]
) -> FloatArray:
    """Of postings without weights."""
    rows = np.array(slots)
    reached = Reached(rows, np.zeros(len(rows), np.float32), np.array(source))
    return table.deviations(query, reached)


def test_deviations_are_from_the_mean_of_the_leaf() -> None:
    embeddings = pictures(40, 3)
    table = SketchesBySlot(Sketch(np.eye(WIDTH, dtype=np.float32)))
    slots = np.random.default_rng(0).permutation(5000)[:40]
    table.put(slots[:7], embeddings[:7])
    table.put(slots[7:], embeddings[7:])
    query = embeddings[0].astype(np.float32)
    cosines = embeddings.astype(np.float32) @ query
    # The last leaf has one image, and the one before it none.
    rows = [0, 1, 2, 3, 2, 5]
    source = [0, 0, 0, 1, 1, 3]
    found = deviations(table, query, slots[rows].tolist(), source)
    first, second = cosines[[0, 1, 2]].mean(), cosines[[3, 2]].mean()
    wanted = cosines[rows] - np.array([first, first, first, second, second, cosines[5]])
    assert found == pytest.approx(wanted, abs=0.02)
    assert found[5] == 0


def test_a_table_is_restored_and_cleared() -> None:
    embeddings = pictures(30, 4)
    table = SketchesBySlot(Sketch.fit(embeddings, seed=0))
    table.put(np.arange(30), embeddings)
    arrays = {name: values.copy() for name, values in table.to_arrays(30).items()}
    assert arrays["table"].shape == (30, DIRECTIONS)
    other = SketchesBySlot(table.sketch)
    other.restore(arrays)
    query = embeddings[0].astype(np.float32)
    slots, source = list(range(30)), [0] * 30
    assert np.array_equal(
        deviations(other, query, slots, source), deviations(table, query, slots, source)
    )
    # It grows behind what was restored.
    other.put(np.array([30]), embeddings[:1])
    assert deviations(other, query, [30, 1], [0, 0])[0] == pytest.approx(
        deviations(table, query, [0, 1], [0, 0])[0]
    )
    other.clear()
    assert other.nbytes == 0
    # A gallery may have slots that no image was put into.
    assert other.to_arrays(3)["table"].shape == (3, DIRECTIONS)


def test_a_sketch_is_read_as_it_was_written(tmp_path: Path) -> None:
    sketch = Sketch.fit(pictures(100, 0), seed=0)
    path = tmp_path / "sketch.safetensors"
    sketch.save(path)
    assert np.array_equal(Sketch.load(path, WIDTH).directions, sketch.directions)
    with pytest.raises(RefuseToStartError, match="must be 65 wide"):
        Sketch.load(path, WIDTH + 1)
    path.write_bytes(b"torn")
    with pytest.raises(RefuseToStartError, match="cannot be read"):
        Sketch.load(path, WIDTH)
