"""The dry run: its memory beside what small runs really take, its steps beside those of a stage."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.network.backbone import fresh_backbone
from model.network.compute import Compute
from model.network.parts import parts_from_base
from model.network.precision import number_format
from model.network.profiles import StageName, TinySize, profile
from model.network.published import backbone_config
from model.network.sigma import SigmaModel
from model.training.batches import StageBatch
from model.training.dry_run import Corpus, _sequences, dry_run
from model.training.hardware import GPUS, gpu
from model.training.memory import Load, model_shape, step_memory
from model.training.peak_memory import PeakMemory
from model.training.trainee import as_trainee
from model.training.training_set import stage_examples
from schemas.errors import RefuseToStartError, UsageError
from tests.unit.model.conftest import small_base, small_profile
from tests.unit.model.training.test_stages import COUNT, training_set

COCO = Corpus(images=113_287, captions=566_747)

WIDER = TinySize(
    hidden=128,
    layers=3,
    heads=4,
    kv_heads=2,
    feed_forward=384,
    vision_hidden=64,
    vision_depth=3,
    vision_heads=4,
    vision_feed_forward=160,
    vocabulary=400,
)

WAYS = (
    Compute(),
    Compute(checkpointing=True),
    Compute(dtype="bfloat16"),
    Compute(dtype="bfloat16", checkpointing=True),
    Compute(dtype="bfloat16", checkpointing=True, micro_batch=4),
    Compute(frozen_vision=True),
    Compute(lora_rank=4),
)


def model_and_batch(compute: Compute, stage: StageName) -> tuple[SigmaModel, StageBatch]:
    base = small_base()
    base = replace(base, size=WIDER, backbone=fresh_backbone(WIDER, base.tokenizer, 0))
    small = replace(small_profile(), compute=compute, tiny=WIDER)
    parts = parts_from_base(base, small)
    data = training_set(parts)
    examples = stage_examples(parts.sigma, data, small.stage(stage), 0)[:COUNT]
    images = [data.images[each.image] for each in examples if each.image is not None]
    patches = parts.sigma.preprocessor(images) if images else None
    return parts.sigma, StageBatch(examples, patches)


def peak_of_a_step(sigma: SigmaModel, batch: StageBatch) -> int:
    """Bytes at the worst moment of the second step: the first one makes the optimizer's state."""
    with as_trainee(sigma, 0):
        sigma.train()
        weights = [weight for weight in sigma.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, 1e-4, foreach=False)

        def step() -> None:
            for part in batch.parts(sigma.profile.compute.micro_batch):
                generation, similarity, *_ = sigma(part.examples, part.patches)
                (generation + similarity).backward()
                del generation, similarity
            optimizer.step()
            optimizer.zero_grad()

        step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        with PeakMemory([*sigma.parameters(), *states]) as memory:
            step()
    return memory.peak


@pytest.mark.parametrize("stage", ["memorize", "align"])
@pytest.mark.parametrize("compute", WAYS, ids=str)
def test_computed_memory_is_within_15_percent_of_what_a_small_run_takes(
    compute: Compute, stage: StageName
) -> None:
    sigma, batch = model_and_batch(compute, stage)
    parts = batch.parts(compute.micro_batch)
    first = parts[0]
    longest = max(len(each.tokens) for each in first.examples)
    load = Load(
        tokens=longest * len(first.examples),
        patches=0 if first.patches is None else len(first.patches.patches),
        predicted=sum(len(each.tokens) - each.prompt_length for each in first.examples),
        parts=len(parts),
    )
    shape = model_shape(sigma.backbone.config, 0)
    assert shape.parameters == sum(weight.numel() for weight in sigma.parameters())
    half = number_format(compute, torch.device("cpu")) == torch.bfloat16
    computed = step_memory(shape, compute, load, gpus=1, half=half).total
    assert computed == pytest.approx(peak_of_a_step(sigma, batch), rel=0.15)


def test_checkpointing_and_bfloat16_take_less_where_activations_are_most() -> None:
    peaks = {way: peak_of_a_step(*model_and_batch(way, "memorize")) for way in WAYS[:4]}
    assert peaks[WAYS[1]] < 0.6 * peaks[WAYS[0]]
    assert peaks[WAYS[2]] < 0.8 * peaks[WAYS[0]]
    assert peaks[WAYS[3]] < 0.6 * peaks[WAYS[2]]


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen-3b", 3_754_622_976), ("qwen-7b", 8_292_166_656)]
)
def test_published_shapes_have_the_published_number_of_parameters(
    name: str, parameters: int
) -> None:
    shape = model_shape(backbone_config(str(profile(name).model)), 0)
    assert shape.parameters - shape.head == parameters


@pytest.mark.parametrize("name", ["qwen-3b", "qwen-7b"])
def test_the_papers_four_cards_hold_a_training(name: str) -> None:
    plan = dry_run(profile(name), COCO, gpu("a6000"), 4, refresh=False)
    assert plan.most < 44.2 * 2**30
    assert [stage.name for stage in plan.stages] == ["memorize", "comprehend", "align"]


@pytest.mark.parametrize("stage", ["memorize", "comprehend", "align"])
def test_sequences_are_those_of_the_stage(stage: StageName) -> None:
    small = replace(small_profile(), views=0)
    parts = parts_from_base(small_base(), small)
    numbers = replace(small.stage(stage), mismatched=0.0)
    real = stage_examples(parts.sigma, training_set(parts), numbers, 0)
    # Few images have none held out.
    counted = _sequences(replace(small, held_out=0.0), Corpus(COUNT, 2 * COUNT), numbers)
    assert sum(counted) == len(real)


@pytest.mark.parametrize(
    ("name", "card", "gpus", "compute", "said"),
    [
        (
            "qwen-3b",
            "a6000",
            4,
            {"micro_batch": 0, "checkpointing": False},
            "compute.checkpointing",
        ),
        ("qwen-3b", "a6000", 1, {}, r"--gpus 2"),
        ("qwen-3b", "a6000", 4, {"sharded": False}, "compute.sharded = true"),
        ("qwen-3b", "l4", 1, {}, "needs 25.6 GiB between stages"),
        ("qwen-7b", "rtx4090", 16, {}, "take a larger GPU"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_setting_that_would(
    name: str, card: str, gpus: int, compute: dict[str, object], said: str
) -> None:
    paper = profile(name)
    changed = replace(paper, compute=replace(paper.compute, **compute))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said):
        dry_run(changed, COCO, gpu(card), gpus, refresh=False)


def test_more_gpus_take_less_time_and_less_memory_of_each() -> None:
    plans = [
        dry_run(profile("qwen-3b"), COCO, gpu("h100"), count, refresh=False) for count in (2, 4, 8)
    ]
    hours = [plan.hours for plan in plans]
    memory = [plan.largest.memory.total for plan in plans]
    assert hours == sorted(hours, reverse=True)
    assert memory == sorted(memory, reverse=True)


def test_small_micro_batches_take_longer_for_a_host_starts_each() -> None:
    hours = []
    for rows in (2, 8, 32):
        paper = profile("qwen-3b")
        changed = replace(paper, compute=replace(paper.compute, micro_batch=rows))
        hours.append(dry_run(changed, COCO, gpu("h200"), 1, refresh=False).hours)
    assert hours[0] > 1.5 * hours[1] > 1.5 * hours[2]


def test_hours_of_steps_are_those_that_an_h200_took() -> None:
    """1.08 s for a step of 32 pictures, 0.49 s for one of 8 (docs/experiments/gpu.md)."""
    for rows, seconds in ((8, 0.49), (32, 1.08)):
        paper = profile("qwen-3b")
        stage = replace(paper.stage("memorize"), epochs=1, batch=rows)
        changed = replace(
            paper,
            stages=(stage,),
            compute=replace(paper.compute, micro_batch=rows),
        )
        plan = dry_run(changed, Corpus(100 * rows, 0), gpu("h200"), 1, refresh=False)
        assert plan.stages[0].hours * 36 == pytest.approx(seconds, rel=0.1)


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match=", ".join(GPUS)):
        gpu("h900")
    with pytest.raises(UsageError, match=r"shape of model someone/else is not known"):
        backbone_config("someone/else")
    with pytest.raises(UsageError, match="trains on a CPU and needs no plan"):
        dry_run(profile("tiny"), COCO, gpu("h100"), 1, refresh=False)


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RefuseToStartError, match=r"config\.json cannot be read"):
        backbone_config(str(tmp_path))


def test_a_query_head_is_trained_and_takes_the_encoder_from_those_that_answer() -> None:
    corpus = Corpus(1000, 5000)
    own = replace(profile("qwen-3b"), query_head=True)
    without = dry_run(profile("qwen-3b"), corpus, gpu("h200"), 1, refresh=False)
    plan = dry_run(own, corpus, gpu("h200"), 1, refresh=False)
    # 2048 → 4096 → 2048 with biases, and a layer norm; half precision.
    head = 2048 * 4096 + 4096 + 4096 * 2048 + 2048 + 2 * 2048
    assert plan.serving.weights == without.serving.weights + 2 * head
    assert (plan.serving.encoder, without.serving.encoder > 0) == (0, True)
    assert plan.largest.memory.total > without.largest.memory.total
