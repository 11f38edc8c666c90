"""The stages of one training: each is run by all ranks, measured, gated and left as a checkpoint by the first."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.profiles import Stage, StageName
from model.network.resize import Pixels
from model.network.sigma import SigmaModel
from model.network.teacher import Teacher
from model.progress import Progress, quiet
from model.training.image_views import visual_tokens
from model.training.ranks import from_first_rank, is_first_rank, sum_over_ranks
from model.training.stage_gates import Gates, StageProbe, evaluate_stage, gate_failures
from model.training.stages import run_stage
from model.training.training_set import TrainingSet
from schemas.records import FloatArray, IntArray
from schemas.training_record import TrainingRecord
from workers.runtime.services import Services
from workers.trainer.material import Material, pictures_of

STAGES = ("codebook", "memorize", "comprehend", "align")
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Order:
    """One stage as the first rank announces it to the others, who read checkpoint and pictures from the same places."""

    folder: Path
    stage: Stage
    uris: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    identifiers: IntArray
    labels: list[FloatArray] | None
    views: int
    seed: int
    resume: bool


class Trainee:
    """A model and its training pictures on one rank. Visual tokens are computed when the first stage needs them."""

    def __init__(self, sigma: SigmaModel, pictures: Pixels) -> None:
        self.sigma, self.pictures = sigma, pictures
        self._visual: Tensor | None = None

    def learn(self, order: Order, progress: Progress) -> tuple[float, float]:
        """Train one stage in place, together with the other ranks; returns the last loss and the CPU seconds of all ranks."""
        begun = time.process_time()
        if order.views and self._visual is None:
            self._visual = visual_tokens(
                self.sigma, np.stack(self.pictures[:]), order.views, order.seed, progress
            )
        data = TrainingSet(
            self.pictures, order.identifiers, order.captions, order.labels, self._visual
        )
        loss = run_stage(
            self.sigma,
            data,
            order.stage,
            order.folder / "training",
            seed=order.seed,
            resume=order.resume,
            progress=progress,
        )
        spent = sum_over_ranks(torch.tensor([time.process_time() - begun], dtype=torch.float64))
        return loss, float(spent[0])


@dataclass(frozen=True, slots=True)
class Course:
    """A training about to run its stages: what it changes (`checkpoint`), where that is kept, and what it learns from.

    `parent` are the evaluations of the generation it comes from; `done` is called when a stage was measured.
    """

    checkpoint: Checkpoint
    about: dict[str, Any]
    folder: Path
    stages: Sequence[Stage]
    material: Material
    probe: StageProbe
    teacher: Callable[[], Teacher]
    parent: Mapping[str, Mapping[str, float]]
    gates: Gates
    views: int
    seed: int
    resume: bool
    done: Callable[[], None]


def run_course(course: Course, until: str, progress: Progress) -> list[str]:
    """The stages that are still to do. Returns why the last one did not pass its gate, or nothing when all passed."""
    about = course.about
    wanted = STAGES[1 : STAGES.index(until) + 1]
    trainee = Trainee(course.checkpoint.sigma, course.material.pictures)
    labels: list[FloatArray] | None = None
    for stage in course.stages:
        if stage.name not in wanted or stage.name in about["stages"]:
            continue
        with clocked(about, stage.name):
            if stage.name == "align" and stage.soft_label_weight > 0:
                labels = soft_labels(course.teacher(), course.material, progress)
            order = Order(
                course.folder,
                stage,
                course.material.uris,
                course.material.captions,
                course.probe.data.identifiers,
                labels,
                course.views,
                course.seed,
                course.resume,
            )
            loss, spent = trainee.learn(from_first_rank(order), progress)
        # What the other ranks spent, too, and the clock above knows this process only.
        about["cpu_seconds"][stage.name] = round(max(spent, about["cpu_seconds"][stage.name]), 2)
        if wrong := _measure(course, stage.name, loss):
            return [f"stage {stage.name}: {one}" for one in wrong]
    return []


def assist(services: Services) -> None:
    """What every rank but the first does: take part in the stages that the first announces, until it announces no more."""
    trainee: Trainee | None = None
    while (order := from_first_rank(_NOTHING)) is not None:
        if trainee is None:
            sigma = load_checkpoint(order.folder).sigma
            trainee = Trainee(sigma, pictures_of(services.store, order.uris, sigma.profile))
        trainee.learn(order, quiet)


def dismiss() -> None:
    """Tells the other ranks that there are no more stages."""
    if is_first_rank():
        from_first_rank(_NOTHING)


_NOTHING: Order | None = None


@contextmanager
def clocked(about: dict[str, Any], name: str) -> Iterator[None]:
    """Adds the seconds, and the CPU seconds of this process, that the block took to what `about` has under the name."""
    wall, spent = time.monotonic(), time.process_time()
    try:
        yield
    finally:
        for kind, took in (
            ("seconds", time.monotonic() - wall),
            ("cpu_seconds", time.process_time() - spent),
        ):
            known = about.setdefault(kind, {})
            known[name] = round(known.get(name, 0.0) + took, 2)


def soft_labels(teacher: Teacher, material: Material, progress: Progress) -> list[FloatArray]:
    """The teacher's score of each image with each of its captions (equation 7)."""
    labels: list[FloatArray] = []
    with progress("soft labels", len(material)) as bar:
        for start in range(0, len(material), _BATCH):
            texts = material.captions[start : start + _BATCH]
            images = [
                image
                for image, own in zip(material.pictures[start : start + _BATCH], texts, strict=True)
                for _ in own
            ]
            scores = teacher.score(images, [text for own in texts for text in own])
            labels += np.split(scores, np.cumsum([len(own) for own in texts])[:-1])
            bar.update(len(texts))
    return labels


def _measure(course: Course, name: StageName, loss: float) -> list[str]:
    """Evaluate the stage, keep its checkpoint if it passes, and tell what is wrong if it does not."""
    about = course.about
    if not isfinite(loss):
        return [f"its loss is {loss}; lower the learning rate"]
    with clocked(about, "evaluate"):
        figures = evaluate_stage(
            name, course.checkpoint.sigma, course.probe, course.gates, course.seed
        )
    wrong = gate_failures(name, figures, course.parent.get(name), course.gates)
    rounded = {figure: round(value, 4) for figure, value in figures.items()}
    about["evaluations"] = about.get("evaluations", {}) | {
        name: rounded | {"training_loss": round(loss, 4)}
    }
    if not wrong:
        about["stages"] = [*about["stages"], name]
        record = TrainingRecord.from_json(about)
        save_checkpoint(replace(course.checkpoint, record=record), course.folder)
    course.done()
    return wrong
