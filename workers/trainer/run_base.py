"""The base of a run: the pretrained parts that a training begins with, and the teacher."""

import shutil
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from model.network.backbone import fresh_backbone
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.encoder import Encoder, FittableEncoder, TwoTower
from model.network.encoders.kept import KeptEncoder
from model.network.encoders.reader import open_encoder
from model.network.encoders.teacher import EncoderTeacher
from model.network.jina import JinaTeacher
from model.network.parts import ModelParts, parts_from_base, pretrained_parts
from model.network.profiles import Profile
from model.network.resize import Pixels
from model.network.teacher import CrossHead, Teacher
from model.network.tokenizer import train_tokenizer
from model.progress import Progress
from model.training.adapt import (
    SUFFICIENT_RECALL,
    AdaptConfig,
    adapt,
    base_recall,
)
from model.training.class_names import class_names
from model.training.contrastive import CaptionedImages
from model.training.trial import (
    SUFFICIENT_ORDER,
    AdaptationTrial,
    TrialConfig,
    try_adaptation,
)
from schemas.errors import RefuseToStartError, UsageError
from schemas.records import FloatArray
from workers.trainer.kept_vectors import embed_kept
from workers.trainer.training_images import TrainingImages
from workers.trainer.training_run import TrainingRun

# Folder of a generation's own base, in the folder of its checkpoint. Without it, the generation
# uses the base that is shipped with the program.
BASE = "base"

# Captioned images that a base is measured on and adapted to: fewer teach it nothing.
_LEAST_CAPTIONED = 2

# Pictures embedded at a time.
_BATCH = 64


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
    embeddings: FloatArray
    """(N, D) float32 of the images to train on."""


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """What a full training begins with before it has seen its images."""

    checkpoint: Checkpoint | None
    """That of the run that is resumed, once it has a codebook."""
    encoder: Encoder | None
    """The pretrained encoder; None: that of base or profile."""


@dataclass(frozen=True, slots=True)
class ChosenEncoder:
    """The encoder that a run was asked to use, and its (N, D) float32 vectors of the images."""

    encoder: Encoder
    embeddings: FloatArray


def open_run(run: TrainingRun) -> OpenedRun:
    """Read the encoder of a run, of its checkpoint or as it was asked for, before any image.

    How large pictures are stored depends on what it reads, and a wrong name is told at once.
    """
    # New layers, such as the soft-label head, draw their first weights after this.
    torch.manual_seed(run.request.seed)
    if run.has_codebook:
        checkpoint = load_checkpoint(run.folder)
        kept = isinstance(checkpoint.encoder, KeptEncoder)
        return OpenedRun(checkpoint, checkpoint.encoder if kept else None)
    source = run.request.encoder
    if source is None and run.profile.tiny is not None:
        source = run.profile.encoder
    return OpenedRun(None, None if source is None else open_encoder(source))


def first_parts(
    run: TrainingRun, opened: OpenedRun, images: TrainingImages, progress: Progress
) -> FirstParts:
    """The parts to train: fresh ones from a base or pretrained weights, or those of the checkpoint.

    A resumed run takes model and encoder from its checkpoint, which does not hold the teacher.
    """
    checkpoint = opened.checkpoint
    chosen = _chosen_encoder(run, opened, images, progress)
    recall = None
    if run.profile.tiny is None:
        parts = pretrained_parts(run.profile, None if chosen is None else chosen.encoder)
    else:
        run_base = _base_of(run, images, chosen, progress)
        recall = run_base.recall
        parts = parts_from_base(run_base.base, run.profile)
        if chosen is not None:
            teacher = EncoderTeacher.calibrated(
                chosen.encoder, chosen.embeddings, images.captions, run.request.seed
            )
            parts = replace(parts, encoder=chosen.encoder, teacher=teacher)
    if checkpoint is not None:
        parts = replace(parts, sigma=checkpoint.sigma, encoder=checkpoint.encoder)
    if chosen is not None:
        return FirstParts(parts, recall, chosen.embeddings)
    return FirstParts(parts, recall, embed(parts.encoder, images.pictures, progress))


def _chosen_encoder(
    run: TrainingRun, opened: OpenedRun, images: TrainingImages, progress: Progress
) -> ChosenEncoder | None:
    """The pretrained encoder of a run, with its vectors of the images.

    One that learns from captions has learnt from those of the run. None: that of base or profile.
    """
    encoder = opened.encoder
    if encoder is None:
        return None
    if opened.checkpoint is None and isinstance(encoder, FittableEncoder):
        known = images.select(images.captioned)
        encoder = encoder.fitted(known.originals, known.captions, run.request.seed)
    vectors = embed_kept(encoder, images.originals, images.uris, run.folder, progress)
    return ChosenEncoder(encoder, vectors)


def embed(encoder: Encoder, pictures: Pixels, progress: Progress) -> FloatArray:
    """(N, D) float32 embeddings of N pictures."""
    parts = []
    with progress("embed images", len(pictures)) as bar:
        for start in range(0, len(pictures), _BATCH):
            parts.append(encoder.embed_images(pictures[start : start + _BATCH]))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _base_of(
    run: TrainingRun, images: TrainingImages, chosen: ChosenEncoder | None, progress: Progress
) -> RunBase:
    """The run's own base in its folder, or the requested one, adapted where that helps."""
    own = run.folder / BASE
    request = run.request
    if own.is_dir():
        return RunBase(Base.load(own), recall=None)
    if request.base == SHIPPED and run.profile.name != SHIPPED.name:
        return RunBase(_as_saved(_fresh_base(run, images), own), recall=None)
    base = Base.load(request.base)
    captioned = images.select(images.captioned)
    # A pretrained encoder is read by its vectors, so there is nothing to learn of it; and without
    # captions there is nothing to learn from.
    if chosen is not None or len(captioned) < _LEAST_CAPTIONED:
        return RunBase(base, recall=None)
    data = CaptionedImages(np.stack(captioned.pictures[:]), captioned.captions)
    recall = base_recall(base, data, request.seed)
    rounded = round(recall, 4)
    if should_adapt(request.adapt, recall):
        if request.adapt == "auto":
            config = TrialConfig(seed=request.seed)
            require_promising(try_adaptation(base, data, images.queries, config, progress))
        adapted = adapt(base, data, AdaptConfig(seed=request.seed), progress)
        return RunBase(_as_saved(adapted, own), rounded)
    if request.base != SHIPPED:
        copy_base(request.base, own)
    return RunBase(base, rounded)


def _fresh_base(run: TrainingRun, images: TrainingImages) -> Base:
    """A base of random weights, for a size that none is shipped of, with the corpus's own tokens.

    Its towers are never asked: such a profile has a pretrained encoder.
    """
    size = run.profile.tiny
    if size is None:
        raise AssertionError(f"profile {run.profile.name} has pretrained weights and no base")
    texts = [*class_names(), *chain.from_iterable(images.captions)]
    tokenizer = train_tokenizer(texts, size.vocabulary)
    width = run.profile.embedding_width
    return Base(
        size=size,
        tokenizer=tokenizer,
        towers=TwoTower(len(tokenizer), width),
        cross=CrossHead(width=width),
        backbone=fresh_backbone(size, tokenizer, run.request.seed),
        limit=run.profile.max_text_tokens,
        about={"fresh": True, "images": len(images)},
    )


def require_promising(trial: AdaptationTrial | None) -> None:
    """`UsageError` when a trial shows that the base does not learn the words of a corpus.

    A whole training would find it out at its last gate.
    """
    if trial is None or trial.is_promising:
        return
    raise UsageError(
        f"the text side of the tiny profile does not know the words of these captions: after a "
        f"trial with {trial.views:,} pictures a text puts its own one before {trial.order:.0%} of "
        f"{trial.held_out} that were held out, wanted are {SUFFICIENT_ORDER:.0%} (chance 50%); "
        "take --profile small or --encoder efficientnet-minilm, whose text sides know them, or "
        "train nevertheless with --adapt always"
    )


def _as_saved(base: Base, own: Path) -> Base:
    """Save a base as the run's own, whole or not at all, and read it back.

    It was written in half precision: a resumed run must begin with the same.
    """
    unfinished = own.with_name(f".{own.name}")
    base.save(unfinished)
    unfinished.replace(own)
    return Base.load(own)


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
