"""Adapting the base: stage 0 continued on a corpus that looks unlike the one the base was made from."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from model.network.backbone import ImagePreprocessor
from model.network.base import Base
from model.network.prompts import PromptBuilder
from model.progress import Progress
from model.training.contrastive import (
    CaptionedImages,
    ContrastiveConfig,
    train_teacher,
    train_two_tower,
)
from model.training.pretrain import DistillHeads, PretrainConfig, Pretrainer, pretrain

SUFFICIENT_RECALL = 0.8
"""Recall@10 of the base among 1,000 training images, from which on it is used as it is."""

_PROBE = 1000


@dataclass(frozen=True, slots=True)
class AdaptConfig:
    """How many image views (images x epochs) each half of an adaptation sees, and the seed."""

    contrastive_views: int = 40_000
    pretrain_views: int = 16_000
    seed: int = 0

    def epochs(self, views: int, images: int) -> int:
        """Whole epochs for that many views, between 1 and 40."""
        return max(1, min(40, round(views / images)))


def base_recall(base: Base, data: CaptionedImages, seed: int) -> float:
    """R@10 of the base's encoder on at most 1,000 images and one caption each: does the base know this kind of picture?"""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data))[:_PROBE]
    encoder = base.encoder
    texts = encoder.embed_texts(
        [data.captions[row][int(rng.integers(len(data.captions[row])))] for row in rows]
    )
    scores = texts @ encoder.embed_images([data.pixels[row] for row in rows]).T
    return float(((scores > np.diag(scores)[:, None]).sum(1) < 10).mean())


def adapt(base: Base, data: CaptionedImages, config: AdaptConfig, progress: Progress) -> Base:
    """Train the base's towers, teacher and backbone further, in place, on (N, side, side, 3) images with captions."""
    epochs = config.epochs(config.contrastive_views, len(data))
    contrastive = ContrastiveConfig(
        epochs=epochs, learning_rate=8e-4, limit=base.limit, seed=config.seed
    )
    train_two_tower(base.towers, base.tokenizer, data, contrastive, progress)
    train_teacher(
        base.cross,
        base.towers,
        base.tokenizer,
        data,
        replace(contrastive, epochs=max(1, epochs // 5)),
        progress,
    )
    more = PretrainConfig(
        epochs=config.epochs(config.pretrain_views, len(data)), learning_rate=8e-4, seed=config.seed
    )
    pretrain_base(base, data, more, progress)
    return replace(
        base,
        about={
            **base.about,
            "adapted": {
                "images": len(data),
                "contrastive_epochs": epochs,
                "pretrain_epochs": more.epochs,
            },
        },
    )


def pretrain_base(
    base: Base, data: CaptionedImages, config: PretrainConfig, progress: Progress
) -> float:
    """Teach the base's backbone to see and read from its own encoder (second half of stage 0)."""
    encoder = base.encoder
    images = np.concatenate(
        [
            encoder.embed_images(list(part))
            for part in np.array_split(data.pixels, max(1, len(data) // 2048))
        ]
    )
    torch.manual_seed(config.seed)
    heads = DistillHeads(base.size.hidden, encoder.width).to(base.backbone.device)
    prompts = PromptBuilder(base.tokenizer, [[] for _ in range(5)], base.limit)
    trainer = Pretrainer(base.backbone, prompts, ImagePreprocessor.tiny(base.size), heads, config)
    return pretrain(trainer, data, images, encoder.embed_texts, progress)
