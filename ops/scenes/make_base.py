"""Stage 0 as a command: makes the base of the `tiny` profile, from scenes that no corpus has."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.network.backbone import fresh_backbone
from model.network.base import ABOUT, SHIPPED, Base
from model.network.encoder import TwoTower
from model.network.profiles import Profile, TinySize, profile
from model.network.teacher import CrossHead
from model.network.tokenizer import train_tokenizer
from model.progress import Progress
from model.training.adapt import pretrain_base
from model.training.contrastive import (
    CaptionedImages,
    ContrastiveConfig,
    train_teacher,
    train_two_tower,
)
from model.training.pretrain import PretrainConfig
from ops.scenes.corpus import CorpusConfig, drawn, samples
from ops.scenes.scene_hints import placed_labels, scene_hints
from schemas.errors import UsageError
from schemas.records import JsonObject

# What `BaseConfig.continue_from` calls the shipped base.
SHIPPED_NAME = "shipped"

# Fewer images teach the encoder nothing that holds on other images.
LEAST_IMAGES = 1000

# With hints: taught shapes within minutes (docs/experiments/shapes.md).
HINTED_BATCH = 64
HINTED_LEARNING_RATE = 2e-3

# The teacher's head is small and starts from trained towers.
TEACHER_LEARNING_RATE = 1e-3

CUTOFFS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """What stage 0 learns from and for how long. The defaults made the shipped base."""

    images: int = 20_000
    captions: int = 5
    seed: int = 1
    continue_from: str | None = None
    """Folder of the base whose weights are trained further, or `shipped`; None: fresh ones."""
    hinted_epochs: int = 0
    """Epochs with hints (`ops.scenes.scene_hints`), before those from captions alone."""
    contrastive_epochs: int = 12
    teacher_epochs: int = 2
    vision_epochs: int = 0
    """Epochs in which labels of the scenes teach the backbone's vision tower, before the rest."""
    pretrain_epochs: int = 4
    probe: int = 3_500
    """Scenes that the base never saw, to measure its encoder with."""


def build_base(config: BaseConfig, folder: Path, progress: Progress) -> dict[str, object]:
    """Make a base in `folder` and return its description, `base.json`.

    An interrupted run of the same settings continues after its first half.
    """
    tiny = profile("tiny")
    size = tiny.tiny
    if size is None or config.images < LEAST_IMAGES:
        raise UsageError(
            f"--images must be at least {LEAST_IMAGES} for a base, got {config.images}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    corpus = CorpusConfig(
        config.images, seed=config.seed, captions=config.captions, test_captions=0, world="base"
    )
    data = CaptionedImages(*drawn(corpus, size.image_px, progress))
    first = _first_base(config, tiny, size, data)
    description: JsonObject = {
        "config": asdict(config),
        "corpus": asdict(corpus),
        "device": device.type,
        "continued_from": dict(first.about),
    }
    half = folder / "contrastive"
    with single_precision_matrix_units():
        if not _holds(half, description):
            _train_encoder(config, first, data, description, device, progress).save(half)
        base = Base.load(half)
        modules: tuple[nn.Module, ...] = (base.towers, base.cross, base.backbone)
        for module in modules:
            module.to(device)
        _train_backbone(config, base, data, corpus, progress)
    probe = CorpusConfig(config.probe, seed=config.seed, captions=0, test_captions=1)
    recall = probe_recall(base, probe, progress)
    complete: dict[str, object] = {**base.about}
    complete["exact_recall_in_unseen_scenes"] = recall
    complete["command"] = command(config)
    replace(base, about=complete).save(folder)
    shutil.rmtree(half)
    return complete


def _first_base(config: BaseConfig, tiny: Profile, size: TinySize, data: CaptionedImages) -> Base:
    """What stage 0 trains: the weights of another base, or fresh ones and a new tokenizer."""
    if config.continue_from is not None:
        shipped = config.continue_from == SHIPPED_NAME
        return Base.load(SHIPPED if shipped else Path(config.continue_from))
    tokenizer = train_tokenizer(
        (text for captions in data.captions for text in captions), size.vocabulary
    )
    return Base(
        size,
        tokenizer,
        TwoTower(len(tokenizer), tiny.embedding_width),
        CrossHead(width=tiny.embedding_width),
        fresh_backbone(size, tokenizer, config.seed),
        tiny.max_text_tokens,
        about={},
    )


def _train_encoder(
    config: BaseConfig,
    base: Base,
    data: CaptionedImages,
    description: JsonObject,
    device: torch.device,
    progress: Progress,
) -> Base:
    """Run the first half of stage 0: encoder and teacher. The backbone stays as it is."""
    contrastive = ContrastiveConfig(
        epochs=config.contrastive_epochs, limit=base.limit, seed=config.seed
    )
    towers = base.towers.to(device)
    cross = base.cross.to(device)
    if config.hinted_epochs:
        hinted = replace(
            contrastive,
            epochs=config.hinted_epochs,
            batch=HINTED_BATCH,
            learning_rate=HINTED_LEARNING_RATE,
        )
        scenes = [sample.scene for sample in samples(CorpusConfig(**description["corpus"]))]
        train_two_tower(towers, base.tokenizer, data, hinted, progress, scene_hints(scenes))
    if config.contrastive_epochs:
        train_two_tower(towers, base.tokenizer, data, contrastive, progress)
    short = replace(contrastive, epochs=config.teacher_epochs, learning_rate=TEACHER_LEARNING_RATE)
    accuracy = train_teacher(cross, towers, base.tokenizer, data, short, progress)
    return replace(base, about=description | {"teacher_accuracy": round(accuracy, 4)})


def _train_backbone(
    config: BaseConfig,
    base: Base,
    data: CaptionedImages,
    corpus: CorpusConfig,
    progress: Progress,
) -> None:
    """Run the second half of stage 0, in place."""
    pretraining = PretrainConfig(
        vision_epochs=config.vision_epochs, epochs=config.pretrain_epochs, seed=config.seed
    )
    labels = None
    if config.vision_epochs:
        labels = placed_labels([sample.scene for sample in samples(corpus)])
    pretrain_base(base, data, pretraining, progress, labels)


def command(config: BaseConfig) -> str:
    """Return the command line that repeats a run."""
    options = []
    for name, value in asdict(config).items():
        if value is not None:
            options.append(f"--{name.replace('_', '-')} {value}")
    return f"sigma base {' '.join(options)}"


def _holds(folder: Path, description: JsonObject) -> bool:
    """Tell whether an interrupted run of the same settings left its first half here."""
    if not (folder / ABOUT).is_file():
        return False
    return description.items() <= Base.load(folder).about.items()


def probe_recall(base: Base, corpus: CorpusConfig, progress: Progress) -> dict[str, float]:
    """Return R@1/5/10 of exact search with the base's encoder, one caption for each scene."""
    pixels, captions = drawn(corpus, base.size.image_px, progress)
    encoder = base.encoder
    queries = encoder.embed_texts([texts[0] for texts in captions])
    scores = queries @ encoder.embed_images(list(pixels)).T
    own_scores = np.diag(scores)[:, None]
    ranks = (scores > own_scores).sum(1)
    recall = {}
    for cutoff in CUTOFFS:
        recall[f"R@{cutoff}"] = round(float((ranks < cutoff).mean()), 4)
    return recall


@contextmanager
def single_precision_matrix_units() -> Iterator[None]:
    """Let a GPU use its TF32 matrix units while training; no effect on a CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
