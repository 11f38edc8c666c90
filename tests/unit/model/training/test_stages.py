"""The stages: true objectives, resuming, checkpoints that check what they belong to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.checkpoint import Checkpoint, ModelParts, load_checkpoint, save_checkpoint
from model.network.profiles import PROFILES, profile
from model.progress import Bar
from model.training.stages import LengthBuckets, TrainingSet, examples, run_stage
from schemas.errors import RefuseToStartError, UsageError
from schemas.training_record import TrainingRecord
from tests.unit.model.conftest import TEXTS, pictures

COUNT = 16


def training_set(parts: ModelParts) -> TrainingSet:
    shape = parts.sigma.profile.shape
    rng = np.random.default_rng(0)
    identifiers = np.column_stack(
        [rng.integers(0, count, COUNT) for count in (*shape.codes, shape.suffixes)]
    )
    labels = [np.array([0.9, 0.1], np.float32) for _ in range(COUNT)]
    return TrainingSet(
        pictures(COUNT),
        identifiers,
        [(TEXTS[i % 4], TEXTS[(i + 1) % 4]) for i in range(COUNT)],
        labels,
    )


def test_each_stage_has_the_sequences_of_the_paper(parts: ModelParts) -> None:
    data, chosen = training_set(parts), parts.sigma.profile
    memorize, comprehend, align = (
        examples(parts.sigma, data, chosen.stage(name), 0).rows
        for name in ("memorize", "comprehend", "align")
    )
    assert len(memorize) == COUNT
    assert len(comprehend) == 2 * COUNT + COUNT // 4
    assert len(align) == 2 * COUNT
    levels = [set(level) for level in parts.sigma.levels]
    for example in memorize + align:
        tail = example.tokens[example.prompt :]
        assert [token in level for token, level in zip(tail, levels, strict=True)] == [True] * 5
    assert all(example.image is not None for example in memorize)
    assert sum(example.image is not None for example in comprehend) == COUNT // 4
    assert sorted({round(example.soft_label or 0, 4) for example in align}) == [0.1, 0.9]


def test_the_soft_label_head_reads_the_identifier_states_and_enters_the_loss(
    parts: ModelParts,
) -> None:
    rows = examples(parts.sigma, training_set(parts), parts.sigma.profile.stage("align"), 0).rows[
        :4
    ]
    losses = parts.sigma.losses(rows, None, None)
    assert losses.similarity > 0
    losses.similarity.backward()
    assert (
        parts.sigma.backbone.get_input_embeddings().weight.grad[parts.sigma.levels[0]].abs().sum()
        > 0
    )
    assert all(weight.grad is not None for weight in parts.sigma.head.parameters())


@pytest.mark.parametrize("name", ["memorize", "comprehend", "align"])
def test_a_stage_lowers_its_own_loss(parts: ModelParts, name: str, tmp_path: Path) -> None:
    stage = parts.sigma.profile.stage(name)
    data = training_set(parts)
    rows = examples(parts.sigma, data, stage, 0).rows

    def loss() -> float:
        parts.sigma.eval()
        pictured = [data.images[row.image] for row in rows if row.image is not None]
        with torch.inference_mode():
            given = parts.sigma.inputs(pictured) if pictured else None
            seen = None if given is None else parts.sigma.see(given)
            return float(
                parts.sigma.losses(rows, seen, None if given is None else given.grid).generation
            )

    before = loss()
    run_stage(parts.sigma, data, stage, tmp_path / "stage")
    assert loss() < before - 0.1
    assert not (tmp_path / "stage").exists()


class Stopped(Exception):
    """Raised by a bar in place of a kill."""


def test_a_stage_that_was_killed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    from model.network.checkpoint import parts_from_base
    from tests.unit.model.conftest import small_base, small_profile

    chosen = small_profile()
    stage = chosen.stage("align")
    straight, broken = (parts_from_base(small_base(), chosen) for _ in range(2))
    run_stage(straight.sigma, training_set(straight), stage, tmp_path / "a", seed=3)

    @contextmanager
    def dying(label: str, total: int) -> Iterator[Bar]:
        class Dying:
            steps = 0

            def update(self, n: int, **figures: float) -> None:
                self.steps += n
                if self.steps == total // 2 + 1:
                    raise Stopped

        yield Dying()

    with pytest.raises(Stopped):
        run_stage(broken.sigma, training_set(broken), stage, tmp_path / "b", seed=3, progress=dying)
    assert list((tmp_path / "b").glob("checkpoint-*"))
    fresh = parts_from_base(small_base(), chosen)
    run_stage(fresh.sigma, training_set(fresh), stage, tmp_path / "b", seed=3, resume=True)
    for (name, one), other in zip(
        straight.sigma.state_dict().items(), fresh.sigma.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, msg=name)


def saved(parts: ModelParts, folder: Path) -> Checkpoint:
    rows = np.random.default_rng(0).standard_normal((60, 24)).astype(np.float32)
    checkpoint = Checkpoint(
        parts.sigma,
        fit_codebook(rows, CodebookConfig(parts.sigma.profile.shape)),
        parts.encoder,
        TrainingRecord(stages=("codebook",)),
    )
    save_checkpoint(checkpoint, folder)
    return checkpoint


def test_a_checkpoint_gives_back_the_same_model_codebook_and_encoder(
    parts: ModelParts, tmp_path: Path
) -> None:
    before = saved(parts, tmp_path)
    after = load_checkpoint(tmp_path, before.codebook.version)
    for (name, one), other in zip(
        before.sigma.state_dict().items(), after.sigma.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    np.testing.assert_array_equal(
        before.encoder.embed_texts(TEXTS), after.encoder.embed_texts(TEXTS)
    )
    np.testing.assert_array_equal(
        before.encoder.embed_images(pictures(3)), after.encoder.embed_images(pictures(3))
    )
    assert after.record.stages == ("codebook",)


def test_a_checkpoint_refuses_another_codebook(parts: ModelParts, tmp_path: Path) -> None:
    saved(parts, tmp_path)
    with pytest.raises(RefuseToStartError, match="is expected"):
        load_checkpoint(tmp_path, "0123456789abcdef")
    other = np.random.default_rng(1).standard_normal((60, 24)).astype(np.float32)
    fit_codebook(other, CodebookConfig(parts.sigma.profile.shape)).save(tmp_path)
    with pytest.raises(RefuseToStartError, match="is expected"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["checkpoint.json", "head.safetensors", "encoder.safetensors", "backbone/model.safetensors"],
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
    about = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(RefuseToStartError, match="format 99"):
        load_checkpoint(tmp_path)


def test_buckets_hold_every_sequence_once_and_change_with_the_epoch() -> None:
    sampler = LengthBuckets([i % 17 for i in range(200)], batch=8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(200))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_the_qwen_profiles_are_the_papers() -> None:
    for name in ("qwen-3b", "qwen-7b"):
        found = profile(name)
        assert found.shape.codes == (64, 32, 16, 32)
        assert (found.encoder, found.teacher) == (
            "jinaai/jina-embeddings-v4",
            "jinaai/jina-reranker-m0",
        )
        assert [stage.name for stage in found.stages] == ["memorize", "comprehend", "align"]
    with pytest.raises(UsageError, match=", ".join(PROFILES)):
        profile("huge")
