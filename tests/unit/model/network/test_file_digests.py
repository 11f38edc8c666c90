"""Damage of a single byte in any file of weights is noticed, and the file is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.file_digests import DIGESTS, check_digests, file_names
from model.network.parts import ModelParts
from schemas.errors import RefuseToStartError
from tests.unit.model.network.test_checkpoint import codebook_of
from workers.trainer.identifier_plan import PLAN, IdentifierPlan


def flip(file: Path, position: float, length: int = 1) -> None:
    """Invert bytes at a place between 0 (the beginning) and 1."""
    content = bytearray(file.read_bytes())
    begin = int(position * (len(content) - length))
    for index in range(begin, begin + length):
        content[index] ^= 0xFF
    file.write_bytes(content)


def test_a_flipped_byte_in_any_file_of_a_checkpoint_is_refused_with_its_name(
    parts: ModelParts, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    save_checkpoint(Checkpoint(parts.sigma, codebook_of(parts, seed=0), parts.encoder), good)
    names = [*file_names(good), DIGESTS]
    assert len(names) > 8
    for name in names:
        for position in (0.0, 0.5, 1.0):
            damaged = tmp_path / "damaged"
            shutil.copytree(good, damaged)
            flip(damaged / name, position)
            with pytest.raises(RefuseToStartError, match="again") as refusal:
                load_checkpoint(damaged)
            assert name in str(refusal.value) or str(damaged) in str(refusal.value), name
            shutil.rmtree(damaged)


def test_four_kilobytes_flipped_in_the_weights_are_refused(
    parts: ModelParts, tmp_path: Path
) -> None:
    save_checkpoint(Checkpoint(parts.sigma, codebook_of(parts, seed=0), parts.encoder), tmp_path)
    flip(tmp_path / "backbone" / "model.safetensors", 0.6, 4096)
    with pytest.raises(RefuseToStartError, match=r"backbone/model\.safetensors cannot be read"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_a_version_without_digests_is_loaded(
    parts: ModelParts, tmp_path: Path
) -> None:
    save_checkpoint(Checkpoint(parts.sigma, codebook_of(parts, seed=0), parts.encoder), tmp_path)
    (tmp_path / DIGESTS).unlink()
    load_checkpoint(tmp_path)


def test_the_shipped_base_has_digests_and_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    check_digests(SHIPPED)
    assert (SHIPPED / DIGESTS).exists()
    for name in file_names(SHIPPED):
        damaged = tmp_path / name
        shutil.copytree(SHIPPED, damaged)
        flip(damaged / name, 0.5)
        with pytest.raises(RefuseToStartError, match="cannot be read as it was written"):
            Base.load(damaged)


def test_a_damaged_plan_is_refused_with_its_name(tmp_path: Path) -> None:
    numbers = np.arange(200)
    flags = numbers % 2 == 0
    plan = IdentifierPlan(numbers, numbers, numbers, flags, flags, flags)
    plan.save(tmp_path)
    assert np.array_equal(IdentifierPlan.load(tmp_path).leaves, numbers)
    whole = (tmp_path / PLAN).read_bytes()
    # Not the very end: the ZIP's directory ends with sizes that readers make no use of.
    for position in np.linspace(0.01, 0.7, 20):
        (tmp_path / PLAN).write_bytes(whole)
        flip(tmp_path / PLAN, float(position), 8)
        with pytest.raises(RefuseToStartError, match=r"plan\.npz"):
            IdentifierPlan.load(tmp_path)
