"""Checkpoints are read back as they were; damaged or mismatched ones are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.checkpoint_description import ABOUT
from model.network.compute import Compute
from model.network.parts import ModelParts
from model.network.profiles import profile
from model.network.querybank import Querybank
from schemas.errors import RefuseToStartError
from schemas.training_record import TrainingRecord
from tests.unit.model.conftest import TEXTS, WIDTH, pictures


def codebook_of(parts: ModelParts, seed: int) -> Codebook:
    """A codebook fitted on noise."""
    vectors = np.random.default_rng(seed).standard_normal((60, WIDTH)).astype(np.float32)
    return fit_codebook(vectors, CodebookConfig(parts.sigma.profile.shape))


def saved(parts: ModelParts, folder: Path) -> Checkpoint:
    """A checkpoint of the parts, written to the folder."""
    record = TrainingRecord(stages=("codebook",))
    checkpoint = Checkpoint(parts.sigma, codebook_of(parts, seed=0), parts.encoder, record)
    save_checkpoint(checkpoint, folder)
    return checkpoint


def test_a_checkpoint_gives_back_the_same_model_codebook_and_encoder(
    parts: ModelParts, tmp_path: Path
) -> None:
    before = saved(parts, tmp_path)
    after = load_checkpoint(tmp_path, before.codebook.version)
    expected = before.sigma.state_dict()
    found = after.sigma.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    images = pictures(3)
    np.testing.assert_array_equal(
        after.encoder.embed_texts(TEXTS), before.encoder.embed_texts(TEXTS)
    )
    np.testing.assert_array_equal(
        after.encoder.embed_images(images), before.encoder.embed_images(images)
    )
    assert after.record.stages == ("codebook",)


def test_a_checkpoint_keeps_its_querybank_and_a_later_save_may_drop_it(
    parts: ModelParts, tmp_path: Path
) -> None:
    before = saved(parts, tmp_path)
    assert load_checkpoint(tmp_path).querybank is None
    vectors = np.eye(WIDTH, dtype=np.float32)
    save_checkpoint(replace(before, querybank=Querybank(vectors, 0.5, 0.75)), tmp_path)
    bank = load_checkpoint(tmp_path).querybank
    assert bank is not None
    assert np.array_equal(bank.vectors, vectors)
    assert bank.numbers() == {"temperature": 0.5, "weight": 0.75}
    assert "querybank" not in load_checkpoint(tmp_path).record.other
    save_checkpoint(before, tmp_path)
    assert load_checkpoint(tmp_path).querybank is None


def test_a_checkpoint_refuses_another_codebook(parts: ModelParts, tmp_path: Path) -> None:
    saved(parts, tmp_path)
    with pytest.raises(RefuseToStartError, match="must be 0123456789abcdef"):
        load_checkpoint(tmp_path, "0123456789abcdef")
    other = codebook_of(parts, seed=1)
    other.save(tmp_path)
    with pytest.raises(RefuseToStartError, match=f"got {other.version}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [ABOUT, "head.safetensors", "encoder.safetensors", "backbone/model.safetensors"],
)
def test_a_damaged_or_missing_file_is_one_clear_refusal(
    parts: ModelParts, tmp_path: Path, name: str
) -> None:
    saved(parts, tmp_path)
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(RefuseToStartError, match="again"):
        load_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RefuseToStartError, match="again"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_format_is_refused(parts: ModelParts, tmp_path: Path) -> None:
    saved(parts, tmp_path)
    document = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(document | {"format": 99}))
    with pytest.raises(RefuseToStartError, match="got 99"):
        load_checkpoint(tmp_path)


def test_a_model_that_answers_is_half_as_wide_and_one_to_be_trained_is_not(
    parts: ModelParts, tmp_path: Path
) -> None:
    # As if the profile's own `auto` were read on a GPU.
    parts.sigma.profile = replace(parts.sigma.profile, compute=Compute(dtype="bfloat16"))
    saved(parts, tmp_path)
    answering = load_checkpoint(tmp_path, answering=True).sigma
    assert {weight.dtype for weight in answering.backbone.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in answering.head.parameters()} == {torch.float32}
    trainable = load_checkpoint(tmp_path).sigma
    assert {weight.dtype for weight in trainable.parameters()} == {torch.float32}


def test_a_checkpoint_of_a_version_that_recorded_no_numbers_is_read_by_its_profiles_name(
    parts: ModelParts, tmp_path: Path
) -> None:
    saved(parts, tmp_path)
    document = json.loads((tmp_path / ABOUT).read_text())
    del document["profile_numbers"]
    (tmp_path / ABOUT).write_text(json.dumps(document))
    (tmp_path / "digests.json").unlink()
    own = parts.sigma.profile
    expected = replace(profile("tiny"), shape=own.shape, tiny=own.tiny)
    assert load_checkpoint(tmp_path).sigma.profile == expected
    (tmp_path / ABOUT).write_text(json.dumps(document | {"profile": "of another version"}))
    with pytest.raises(RefuseToStartError, match=r"'of another version'.*; train again with this"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_gives_back_every_number_of_its_profile(
    parts: ModelParts, tmp_path: Path
) -> None:
    own = replace(parts.sigma.profile, name="mine", wins=0.7, max_text_tokens=31)
    parts.sigma.profile = own
    saved(parts, tmp_path)
    loaded = load_checkpoint(tmp_path).sigma
    assert loaded.profile == own
