"""Steps of training on one GPU: tokens a second, and memory beside the dry run's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.network.precision import number_format
from model.network.sigma import SigmaModel
from model.training.batches import StageBatch
from model.training.memory import Load, model_shape, step_memory
from model.training.peak_memory import PeakMemory
from model.training.trainee import as_trainee
from ops.bench.gpu.pictures import random_pictures
from ops.bench.query_texts import query_texts

# Memorisation reads pictures and the vision tower learns; alignment reads texts, and the head of
# soft labels learns beside the decoder.
Kind = Literal["memorize", "align"]


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """Steps of one micro-batch each, with checkpointed layers and bfloat16."""

    stage: Kind
    sequences: int
    tokens_per_s: float
    """Of the decoder, image tokens included."""
    peak_bytes: int
    computed_bytes: int
    """Of the dry run."""
    ratio: float
    """Computed by measured."""
    losses: tuple[float, float]
    """Of the first and of the last step, on the same batch."""


def training_figures(sigma: SigmaModel, rows: int, steps: int, seed: int) -> list[TrainingFigures]:
    """Both kinds of steps, of so many sequences; the weights are others afterwards."""
    with as_trainee(sigma, seed):
        sigma.train()
        return [
            _steps(sigma, "memorize", _pictures(sigma, rows, seed), steps),
            _steps(sigma, "align", _captions(sigma, rows, seed), steps),
        ]


def _steps(sigma: SigmaModel, kind: Kind, batch: StageBatch, steps: int) -> TrainingFigures:
    # As trainings have it.
    optimizer = torch.optim.AdamW(sigma.parameters(), 1e-5, fused=True)

    def step() -> Tensor:
        generation, similarity, *_ = sigma(batch.examples, batch.patches)
        loss: Tensor = generation + similarity
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    first = float(step())
    began = time.perf_counter()
    for _ in range(steps):
        step()
    finish(sigma.device)
    seconds = time.perf_counter() - began
    peak = _peak(step, [*sigma.parameters(), *_states(optimizer)], sigma.device)
    last = float(step())
    tokens = sum(len(each.tokens) for each in batch.examples)
    computed = _computed(sigma, batch)
    return TrainingFigures(
        stage=kind,
        sequences=len(batch.examples),
        tokens_per_s=steps * tokens / seconds,
        peak_bytes=peak,
        computed_bytes=computed,
        ratio=computed / peak,
        losses=(first, last),
    )


def finish(device: torch.device) -> None:
    """Wait for all that a GPU was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def _peak(step: Callable[[], Tensor], there: Sequence[Tensor], device: torch.device) -> int:
    """Bytes at the worst moment of a step."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return int(torch.cuda.max_memory_allocated(device))
    with PeakMemory(there) as memory:
        step()
    return memory.peak


def _pictures(sigma: SigmaModel, rows: int, seed: int) -> StageBatch:
    """One micro-batch of random pictures with random identifiers."""
    patches = sigma.preprocessor(random_pictures(rows, seed))
    codes = _codes(sigma, rows, seed)
    counts = patches.token_counts(sigma.merge)
    examples = [sigma.prompts.memorize(row, count, codes[row]) for row, count in enumerate(counts)]
    return StageBatch(examples, patches)


def _captions(sigma: SigmaModel, rows: int, seed: int) -> StageBatch:
    """One micro-batch of captions with random identifiers and soft labels."""
    codes = _codes(sigma, rows, seed)
    labels = np.random.default_rng(seed).uniform(0, 1, rows).tolist()
    texts = query_texts(rows, seed)
    examples = [
        sigma.prompts.align(text, own, label)
        for text, own, label in zip(texts, codes, labels, strict=True)
    ]
    return StageBatch(examples)


def _codes(sigma: SigmaModel, rows: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    shape = sigma.profile.shape
    widths = (*shape.codes, shape.suffixes)
    return [[int(rng.integers(0, codes)) for codes in widths] for _ in range(rows)]


def _computed(sigma: SigmaModel, batch: StageBatch) -> int:
    """What the dry run says of that step on one GPU."""
    patches = batch.patches
    load = Load(
        tokens=len(batch.examples) * max(len(each.tokens) for each in batch.examples),
        patches=0 if patches is None else len(patches.patches),
        predicted=sum(len(each.tokens) - each.prompt_length for each in batch.examples),
    )
    shape = model_shape(sigma.backbone.config, 0)
    half = number_format(sigma.profile.compute, sigma.device) == torch.bfloat16
    return step_memory(shape, sigma.profile.compute, load, gpus=1, half=half).total
