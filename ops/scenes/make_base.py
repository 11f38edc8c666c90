"""Stage 0 as a command: makes the base of the `tiny` profile from generated scenes that no corpus contains."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.network.backbone import fresh_backbone
from model.network.base import ABOUT, Base
from model.network.encoder import TwoTower
from model.network.profiles import profile
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
from ops.scenes.corpus import CorpusConfig, drawn
from schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """What stage 0 learns from and for how long. The defaults made the shipped base."""

    images: int = 20_000
    captions: int = 5
    seed: int = 1
    contrastive_epochs: int = 12
    teacher_epochs: int = 2
    pretrain_epochs: int = 4
    probe: int = 3_500


def build_base(config: BaseConfig, folder: Path, progress: Progress) -> dict[str, object]:
    """Make a base in `folder`; returns what `base.json` says. An interrupted run goes on from its first half."""
    tiny = profile("tiny")
    size = tiny.tiny
    if size is None or config.images < 1000:
        raise UsageError(
            f"a base learns from at least 1000 images, found {config.images}; raise --images"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    corpus = CorpusConfig(
        config.images, seed=config.seed, captions=config.captions, test_captions=0, world="base"
    )
    data = CaptionedImages(*drawn(corpus, size.image_px, progress))
    tokenizer = train_tokenizer(
        (text for texts in data.captions for text in texts), size.vocabulary
    )
    contrastive = ContrastiveConfig(
        epochs=config.contrastive_epochs, limit=tiny.max_text_tokens, seed=config.seed
    )
    about: dict[str, Any] = {
        "config": asdict(config),
        "corpus": asdict(corpus),
        "device": device.type,
    }
    half = folder / "contrastive"
    with single_precision_matrix_units():
        if not _holds(half, about):
            towers, cross = (
                TwoTower(len(tokenizer), tiny.embedding_width).to(device),
                CrossHead(width=tiny.embedding_width).to(device),
            )
            train_two_tower(towers, tokenizer, data, contrastive, progress)
            short = replace(contrastive, epochs=config.teacher_epochs, learning_rate=1e-3)
            about["teacher_accuracy"] = round(
                train_teacher(cross, towers, tokenizer, data, short, progress), 4
            )
            Base(
                size,
                tokenizer,
                towers,
                cross,
                fresh_backbone(size, tokenizer, config.seed),
                tiny.max_text_tokens,
                about,
            ).save(half)
        base = Base.load(half)
        modules: tuple[Any, ...] = (base.towers, base.cross, base.backbone)
        for part in modules:
            part.to(device)
        pretrain_base(
            base, data, PretrainConfig(epochs=config.pretrain_epochs, seed=config.seed), progress
        )
    recall = probe_recall(
        base, CorpusConfig(config.probe, seed=config.seed, captions=0, test_captions=1), progress
    )
    done = {
        **base.about,
        "exact_recall_in_unseen_scenes": recall,
        "command": command(config),
    }
    replace(base, about=done).save(folder)
    shutil.rmtree(half)
    return done


def command(config: BaseConfig) -> str:
    """The command line that repeats a run."""
    return "sigma base " + " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in asdict(config).items()
    )


def _holds(folder: Path, about: dict[str, Any]) -> bool:
    """Whether an interrupted run of the same settings left its first half here."""
    return (folder / ABOUT).is_file() and about.items() <= Base.load(folder).about.items()


def probe_recall(base: Base, corpus: CorpusConfig, progress: Progress) -> dict[str, float]:
    """R@1/5/10 of exact search with the base's encoder over scenes that it never saw, one caption each."""
    pixels, captions = drawn(corpus, base.size.image_px, progress)
    encoder = base.encoder
    scores = (
        encoder.embed_texts([texts[0] for texts in captions]) @ encoder.embed_images(list(pixels)).T
    )
    rank = (scores > np.diag(scores)[:, None]).sum(1)
    return {f"R@{k}": round(float((rank < k).mean()), 4) for k in (1, 5, 10)}


@contextmanager
def single_precision_matrix_units() -> Iterator[None]:
    """Let a GPU use its TF32 matrix units while training; no effect on a CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
