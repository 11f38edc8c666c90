"""The base of a run: the pretrained parts that a training begins with, and the teacher."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from model.network.backbone import fresh_backbone
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.network.encoder import Encoder, FittableEncoder, SmallEncoder, TwoTower
from model.network.encoders.kept import KeptEncoder
from model.network.encoders.reader import open_encoder
from model.network.encoders.teacher import EncoderTeacher
from model.network.hub import open_snapshot, require_kind
from model.network.inputs import ImagePreprocessor
from model.network.jina import JinaEncoder
from model.network.parts import open_teacher, parts_from_base, pretrained_model
from model.network.profiles import Profile, profile
from model.network.resize import Pixels
from model.network.sigma import SigmaModel
from model.network.teacher import CrossHead, Teacher
from model.network.tokenizer import train_tokenizer
from model.network.word_rows import WordTable, begin_with_words
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

# What a fresh base says of its word table (`model.network.word_rows`).
ENCODER_WORDS = "encoder_words"

# Captioned images that a base is measured on and adapted to: fewer teach it nothing.
_LEAST_CAPTIONED = 2

# Words of an encoder that get tokens of their own: more would take those of the captions' words.
_MOST_WORDS = 8_000

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

    sigma: SigmaModel
    encoder: Encoder
    base_recall: float | None
    """See `RunBase.recall`."""
    load_teacher: Callable[[], Teacher]
    """Only alignment needs it."""
    embeddings: FloatArray
    """(N, D) float32 of the images to train on."""


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """What a full training begins with before it has seen its images."""

    checkpoint: Checkpoint | None
    """That of the run that is resumed, once it has a codebook."""
    encoder: Encoder | None
    """The pretrained encoder; None: that of the base."""
    side_px: int | None = None
    """Of the square that model or encoder read of a picture, whichever is more; None: as little as
    those of a base."""


@dataclass(frozen=True, slots=True)
class ChosenEncoder:
    """The encoder that a run was asked to use, and its (N, D) float32 vectors of the images."""

    encoder: Encoder
    embeddings: FloatArray


def open_run(run: TrainingRun) -> OpenedRun:
    """Read the encoder of a run, of its checkpoint or as it was asked for, before any image.

    How large pictures are stored depends on what it reads; and a wrong name of an encoder, a model
    or a teacher is told at once.
    """
    # New layers, such as the soft-label head, draw their first weights after this.
    torch.manual_seed(run.request.seed)
    if run.profile.tiny is None:
        # Alignment needs the teacher, hours later.
        open_teacher(run.profile)
    if run.has_codebook:
        checkpoint = load_checkpoint(run.folder)
        small = isinstance(checkpoint.encoder, SmallEncoder)
        encoder = None if small else checkpoint.encoder
        return OpenedRun(checkpoint, encoder, _side_px(checkpoint.sigma.preprocessor, encoder))
    encoder = _open_encoder(run.profile, run.request.encoder)
    return OpenedRun(None, encoder, _side_px(_preprocessor(run.profile), encoder))


def _open_encoder(profile: Profile, asked: str | None) -> Encoder | None:
    """The encoder that was asked for, or that of the profile; None where that is its base's."""
    source = asked or profile.encoder
    if source is None:
        if profile.tiny is None:
            raise RefuseToStartError(
                f"profile {profile.name} names no encoder; add one with --encoder or in the "
                "profile's file"
            )
        return None
    if profile.trust_remote_code and source == profile.encoder:
        return JinaEncoder.load(source, width=profile.embedding_width)
    return open_encoder(source, profile.embedding_width if profile.tiny is None else None)


def _preprocessor(profile: Profile) -> ImagePreprocessor | None:
    """What the profile's pretrained model sees of a picture; None for a model of a base."""
    if profile.model is None:
        return None
    folder = open_snapshot(profile.model, "model").folder
    require_kind(folder, Qwen2_5_VLForConditionalGeneration)
    return ImagePreprocessor.pretrained(folder, profile.min_pixels, profile.max_pixels)


def _side_px(preprocessor: ImagePreprocessor | None, encoder: Encoder | None) -> int | None:
    """The larger side; None where neither the model nor the encoder is a pretrained one."""
    sides = [encoder.side_px] if isinstance(encoder, KeptEncoder) else []
    if preprocessor is not None and not preprocessor.fixed_size:
        sides.append(preprocessor.side_px)
    return max(sides, default=None)


def first_parts(
    run: TrainingRun, opened: OpenedRun, images: TrainingImages, progress: Progress
) -> FirstParts:
    """The parts to train: fresh ones from a base or pretrained weights, or those of the checkpoint.

    A resumed run takes model and encoder from its checkpoint, which does not hold the teacher.
    """
    checkpoint = opened.checkpoint
    chosen = _chosen_encoder(run, opened, images, progress)
    if run.profile.tiny is None:
        return _pretrained_parts(run, checkpoint, chosen)
    run_base = _base_of(run, images, chosen, progress)
    # Rows that were drawn at random must learn.
    begun = replace(run.profile, encoder_words=bool(run_base.base.about.get(ENCODER_WORDS)))
    parts = parts_from_base(run_base.base, begun)
    if chosen is not None:
        teacher = EncoderTeacher.calibrated(
            chosen.encoder, chosen.embeddings, images.captions, run.request.seed
        )
        parts = replace(parts, encoder=chosen.encoder, teacher=teacher)
    if checkpoint is not None:
        parts = replace(parts, sigma=checkpoint.sigma, encoder=checkpoint.encoder)
    if chosen is not None:
        embeddings = chosen.embeddings
    else:
        embeddings = embed(parts.encoder, images.pictures, progress)
    return FirstParts(
        parts.sigma, parts.encoder, run_base.recall, lambda: parts.teacher, embeddings
    )


def _pretrained_parts(
    run: TrainingRun, checkpoint: Checkpoint | None, chosen: ChosenEncoder | None
) -> FirstParts:
    """Those of a profile with a pretrained model, which has an encoder too."""
    if chosen is None:
        raise AssertionError(f"profile {run.profile.name} has a model but no encoder")
    load_teacher, teacher = open_teacher(run.profile)
    if checkpoint is not None:
        sigma = checkpoint.sigma
    else:
        sigma = pretrained_model(replace(run.profile, teacher=teacher))
    return FirstParts(sigma, chosen.encoder, None, load_teacher, chosen.embeddings)


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
    if request.base == SHIPPED and run.profile.tiny != profile(SHIPPED.name).tiny:
        if chosen is None:
            raise UsageError(
                f"profile {run.profile.name} has sizes that no base is shipped of, and no encoder; "
                "name one with --encoder, or a base of these sizes with --base"
            )
        words = chosen.encoder if run.profile.encoder_words else None
        table = words if isinstance(words, WordTable) else None
        return RunBase(_as_saved(_fresh_base(run, images, table), own), recall=None)
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


def _fresh_base(run: TrainingRun, images: TrainingImages, words: WordTable | None) -> Base:
    """A base of random weights, for a size that none is shipped of, with the corpus's own tokens.

    With `words` those of an encoder are among the tokens, and the word table begins with its rows.
    Its towers are never asked: such a profile has a pretrained encoder.
    """
    size = run.profile.tiny
    if size is None:
        raise AssertionError(f"profile {run.profile.name} has pretrained weights and no base")
    captions = list(chain.from_iterable(images.captions))
    known = [] if words is None else words.known_words()[:_MOST_WORDS]
    texts = [*class_names(), *captions, *known]
    tokenizer = train_tokenizer(texts, size.vocabulary, uncased=run.profile.uncased)
    width = run.profile.embedding_width
    backbone = fresh_backbone(size, tokenizer, run.request.seed)
    if words is not None:
        begin_with_words(backbone, tokenizer, words, captions)
    return Base(
        size=size,
        tokenizer=tokenizer,
        towers=TwoTower(len(tokenizer), width),
        cross=CrossHead(width=width),
        backbone=backbone,
        limit=run.profile.max_text_tokens,
        about={"fresh": True, "images": len(images), ENCODER_WORDS: words is not None},
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
        load_teacher, _ = open_teacher(profile)
        return load_teacher()
    own = Base.load(base if base.is_dir() else SHIPPED)
    if own.encoder.width != encoder.width:
        raise RefuseToStartError(
            f"the base in {base} must have embeddings of the encoder's width {encoder.width}, got "
            f"{own.encoder.width}; retrain in full"
        )
    return own.teacher
