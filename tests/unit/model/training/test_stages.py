"""The stages: their sequences and losses, and a killed one that resumes to the same weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.parts import ModelParts, parts_from_base
from model.network.profiles import StageName
from model.progress import Bar
from model.training.stage_trainer import LengthBuckets
from model.training.stages import run_stage
from model.training.training_set import TrainingSet, stage_examples
from tests.unit.model.conftest import TEXTS, pictures, small_base, small_profile

COUNT = 16


def training_set(parts: ModelParts) -> TrainingSet:
    """Random pictures and identifiers, two captions each, the first of which fits better."""
    shape = parts.sigma.profile.shape
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, count, COUNT) for count in (*shape.codes, shape.suffixes)]
    return TrainingSet(
        images=pictures(COUNT),
        identifiers=np.column_stack(codes),
        captions=[(TEXTS[row % 4], TEXTS[(row + 1) % 4]) for row in range(COUNT)],
        soft_labels=[np.array([0.9, 0.1], np.float32)] * COUNT,
    )


def test_each_stage_has_the_sequences_of_the_paper(parts: ModelParts) -> None:
    data = training_set(parts)
    stages = parts.sigma.profile
    memorize = stage_examples(parts.sigma, data, stages.stage("memorize"), 0)
    comprehend = stage_examples(parts.sigma, data, stages.stage("comprehend"), 0)
    align = stage_examples(parts.sigma, data, stages.stage("align"), 0)
    assert len(memorize) == COUNT
    assert len(comprehend) == 2 * COUNT + COUNT // 4
    assert len(align) == 2 * COUNT
    levels = [set(level) for level in parts.sigma.levels]
    for example in memorize + align:
        identifier = example.tokens[example.prompt_length :]
        assert len(identifier) == len(levels)
        assert all(token in level for token, level in zip(identifier, levels, strict=True))
    assert all(example.image is not None for example in memorize)
    assert sum(example.image is not None for example in comprehend) == COUNT // 4
    assert sorted({round(example.soft_label or 0, 4) for example in align}) == [0.1, 0.9]


def test_the_soft_label_head_reads_the_identifier_states_and_enters_the_loss(
    parts: ModelParts,
) -> None:
    sigma = parts.sigma
    stage = sigma.profile.stage("align")
    examples = stage_examples(sigma, training_set(parts), stage, 0)[:4]
    losses = sigma.losses(examples, None)
    assert losses.similarity > 0
    losses.similarity.backward()
    embedding = sigma.backbone.get_input_embeddings().weight
    assert embedding.grad[sigma.levels[0]].abs().sum() > 0
    assert all(weight.grad is not None for weight in sigma.head.parameters())


@pytest.mark.parametrize("name", ["memorize", "comprehend", "align"])
def test_a_stage_lowers_its_own_loss(parts: ModelParts, name: StageName, tmp_path: Path) -> None:
    sigma = parts.sigma
    stage = sigma.profile.stage(name)
    data = training_set(parts)
    examples = stage_examples(sigma, data, stage, 0)

    def loss() -> float:
        sigma.eval()
        images = [data.images[example.image] for example in examples if example.image is not None]
        with torch.inference_mode():
            visual = sigma.encode_images(sigma.preprocessor(images)) if images else None
            return float(sigma.losses(examples, visual).generation)

    before = loss()
    run_stage(sigma, data, stage, tmp_path / "stage")
    assert loss() < before - 0.1
    assert not (tmp_path / "stage").exists()


class Stopped(Exception):
    """Raised by a bar in place of a kill."""


class StoppingBar:
    """A bar that ends the run behind the middle of its steps."""

    def __init__(self, total: int) -> None:
        self.last = total // 2 + 1
        self.steps = 0

    def update(self, n: int, **figures: float) -> None:
        self.steps += n
        if self.steps == self.last:
            raise Stopped


@contextmanager
def stopping(label: str, total: int) -> Iterator[Bar]:
    """A `Progress` with stopping bars."""
    yield StoppingBar(total)


def test_a_stage_of_a_single_step_learns(tmp_path: Path) -> None:
    parts = parts_from_base(small_base(), small_profile())
    data = training_set(parts)
    before = parts.sigma.backbone.lm_head.weight.detach().clone()
    stage = replace(parts.sigma.profile.stage("memorize"), epochs=0.01, batch=64)
    run_stage(parts.sigma, data, stage, tmp_path / "stage")
    assert not torch.equal(before, parts.sigma.backbone.lm_head.weight)


def test_a_stage_that_was_killed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    profile = small_profile()
    stage = replace(profile.stage("align"), caption_replay=0.5, hidden_words=0.5)
    straight = parts_from_base(small_base(), profile)
    run_stage(straight.sigma, training_set(straight), stage, tmp_path / "a", seed=3)

    killed = parts_from_base(small_base(), profile)
    folder = tmp_path / "b"
    with pytest.raises(Stopped):
        run_stage(killed.sigma, training_set(killed), stage, folder, seed=3, progress=stopping)
    assert list(folder.glob("checkpoint-*"))

    resumed = parts_from_base(small_base(), profile)
    run_stage(resumed.sigma, training_set(resumed), stage, folder, seed=3, resume=True)
    expected = straight.sigma.state_dict()
    found = resumed.sigma.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_buckets_hold_every_sequence_once_and_change_with_the_epoch() -> None:
    sampler = LengthBuckets([length % 17 for length in range(200)], batch=8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(200))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
