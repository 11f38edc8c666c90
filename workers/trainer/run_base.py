"""The base of a run: the pretrained parts that a training begins with, and the teacher."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.network.base import SHIPPED, Base
from model.network.checkpoint import load_checkpoint
from model.network.encoder import Encoder
from model.network.jina import JinaTeacher
from model.network.parts import ModelParts, parts_from_base, pretrained_parts
from model.network.profiles import Profile
from model.network.teacher import Teacher
from model.progress import Progress
from model.training.adapt import SUFFICIENT_RECALL, AdaptConfig, adapt, base_recall
from model.training.contrastive import CaptionedImages
from schemas.errors import RefuseToStartError
from workers.trainer.request import TrainRequest
from workers.trainer.training_images import TrainingImages
from workers.trainer.training_run import TrainingRun

# Folder of a generation's own base, in the folder of its checkpoint. Without it, the generation
# uses the base that is shipped with the program.
BASE = "base"


@dataclass(frozen=True, slots=True)
class RunBase:
    """The base that a run uses."""

    base: Base
    recall: float | None
    """Its recall on the training images before it was adapted; None when it was not measured."""


@dataclass(frozen=True, slots=True)
class FirstParts:
    """Model, encoder and teacher that the stages of a full training begin with."""

    parts: ModelParts
    base_recall: float | None
    """See `RunBase.recall`."""


def first_parts(run: TrainingRun, images: TrainingImages, progress: Progress) -> FirstParts:
    """The parts to train: fresh ones from a base or pretrained weights, or those of the checkpoint.

    A resumed run takes model and encoder from its checkpoint, which does not hold the teacher.
    """
    # New layers, such as the soft-label head, draw their first weights.
    torch.manual_seed(run.request.seed)
    recall = None
    if run.profile.tiny is None:
        fresh = pretrained_parts(run.profile)
    else:
        run_base = _base_of(run.folder / BASE, run.request, images, progress)
        recall = run_base.recall
        fresh = parts_from_base(run_base.base, run.profile)
    if not run.has_codebook:
        return FirstParts(fresh, recall)
    checkpoint = load_checkpoint(run.folder)
    parts = ModelParts(checkpoint.sigma, checkpoint.encoder, fresh.teacher)
    return FirstParts(parts, recall)


def _base_of(
    own: Path, request: TrainRequest, images: TrainingImages, progress: Progress
) -> RunBase:
    """The run's own base in the folder `own`, or the requested one, adapted where that helps."""
    if own.is_dir():
        return RunBase(Base.load(own), recall=None)
    base = Base.load(request.base)
    data = CaptionedImages(np.stack(images.pictures[:]), images.captions)
    recall = base_recall(base, data, request.seed)
    rounded = round(recall, 4)
    if should_adapt(request.adapt, recall):
        unfinished = own.with_name(f".{own.name}")
        adapt(base, data, AdaptConfig(seed=request.seed), progress).save(unfinished)
        unfinished.replace(own)
        # Read back, for it was written in half precision: a resumed run must begin with the same.
        return RunBase(Base.load(own), rounded)
    if request.base != SHIPPED:
        copy_base(request.base, own)
    return RunBase(base, rounded)


def should_adapt(adapt_when: str, recall: float) -> bool:
    """Whether a base with this recall on the training images is trained further on them."""
    if adapt_when == "auto":
        return recall < SUFFICIENT_RECALL
    return adapt_when == "always"


def copy_base(base: Path, own: Path) -> None:
    """Copy a base into a run's folder, whole or not at all, unless there is one already.

    Later refreshes need the teacher that belongs to the encoder.
    """
    if not base.is_dir() or own.is_dir():
        return
    unfinished = own.with_name(f".{own.name}")
    shutil.copytree(base, unfinished, dirs_exist_ok=True)
    unfinished.replace(own)


def teacher_of(base: Path, profile: Profile, encoder: Encoder) -> Teacher:
    """The teacher of a refresh: the profile's, or that of the generation's base.

    `RefuseToStartError` when the base does not belong to the encoder.
    """
    if profile.tiny is None:
        if profile.teacher is None:
            raise RefuseToStartError(
                f"profile {profile.name} names no teacher; use one of the qwen profiles"
            )
        return JinaTeacher.load(profile.teacher)
    own = Base.load(base if base.is_dir() else SHIPPED)
    if own.encoder.width != encoder.width:
        raise RefuseToStartError(
            f"the base in {base} must have embeddings of the encoder's width {encoder.width}, got "
            f"{own.encoder.width}; retrain in full"
        )
    return own.teacher
