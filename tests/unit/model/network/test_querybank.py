"""Querybank normalisation: hubness by its formula, whatever is asked beside, and its file."""

from pathlib import Path

import numpy as np
import pytest

from model.network.querybank import Querybank
from model.retrieval.hubness import HubnessBySlot
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray

SCALE = 20.0


def unit(count: int, width: int, seed: int) -> FloatArray:
    """(count, width) float32 random unit vectors."""
    drawn = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    vectors: FloatArray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return vectors


def test_hubness_is_its_formula() -> None:
    bank = Querybank(unit(50, 16, 0), temperature=0.5, weight=0.75)
    images = unit(100, 16, 1)
    logits = SCALE * (images.astype(np.float64) @ bank.vectors.T.astype(np.float64))
    wanted = np.log(np.exp(0.5 * logits).mean(axis=1)) / 0.5
    assert bank.hubness(images, SCALE) == pytest.approx(wanted, abs=1e-4)


def test_large_logits_do_not_overflow() -> None:
    bank = Querybank(unit(50, 16, 0), temperature=1.0, weight=1.0)
    assert np.isfinite(bank.hubness(bank.vectors, 1000.0)).all()


def test_an_image_has_one_hubness_whatever_is_asked_beside() -> None:
    bank = Querybank(unit(500, 32, 0), temperature=0.7, weight=1.0)
    images = unit(130, 32, 1)
    together = bank.hubness(images, SCALE)
    alone = np.concatenate([bank.hubness(image[None], SCALE) for image in images])
    assert np.array_equal(together, alone)


def test_penalties_are_remembered_by_slot_until_they_are_forgotten() -> None:
    bank = Querybank(unit(50, 16, 0), temperature=0.5, weight=0.75)
    images = unit(10, 16, 1)
    hubness = HubnessBySlot(bank, SCALE)
    slots = np.array([7, 2, 9_000, 0])
    first = hubness.penalties(slots, images[:4])
    assert first == pytest.approx(0.75 * bank.hubness(images[:4], SCALE), abs=1e-6)
    # Another image in a slot, of which nothing was said, has the penalty of the one before.
    assert np.array_equal(hubness.penalties(slots, images[4:8]), first)
    hubness.forget(np.array([2, 20_000]))
    second = hubness.penalties(slots, images[4:8])
    assert second[[0, 2, 3]].tolist() == first[[0, 2, 3]].tolist()
    assert second[1] == pytest.approx(0.75 * bank.hubness(images[5:6], SCALE)[0], abs=1e-6)


def test_nothing_ranked_costs_nothing() -> None:
    hubness = HubnessBySlot(Querybank(unit(5, 4, 0), 1.0, 1.0), SCALE)
    assert not len(hubness.penalties(np.empty(0, np.int64), np.empty((0, 4), np.float32)))


def test_a_bank_is_read_as_it_was_written(tmp_path: Path) -> None:
    bank = Querybank(unit(50, 16, 0), temperature=0.5, weight=0.75)
    bank.save(tmp_path / "bank.safetensors")
    read = Querybank.load(tmp_path / "bank.safetensors", bank.numbers(), 16)
    assert read.numbers() == bank.numbers()
    assert np.array_equal(read.vectors, bank.vectors.astype(np.float16).astype(np.float32))
    with pytest.raises(RefuseToStartError, match="must be 17 wide"):
        Querybank.load(tmp_path / "bank.safetensors", bank.numbers(), 17)
    (tmp_path / "bank.safetensors").write_bytes(b"torn")
    with pytest.raises(RefuseToStartError, match="cannot be read"):
        Querybank.load(tmp_path / "bank.safetensors", bank.numbers(), 16)
