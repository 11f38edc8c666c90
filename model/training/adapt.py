"""Adapting the base: stage 0 continued on a corpus that looks unlike the base's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.network.backbone import MERGE
from model.network.base import Base
from model.network.encoder import Encoder
from model.network.inputs import ImagePreprocessor
from model.network.prompts import PromptBuilder
from model.progress import Progress
from model.training.contrastive import (
    CaptionedImages,
    ContrastiveConfig,
    pick_captions,
    train_teacher,
    train_two_tower,
)
from model.training.hints import PlacedLabels, TokenHints
from model.training.pretrain import DistillHeads, PretrainConfig, Pretrainer, pretrain
from schemas.records import FloatArray

# Recall@10 of the base among `_PROBE_IMAGES` training images, from which on it is used as it is.
SUFFICIENT_RECALL = 0.8

# Images of a probe: enough to see within seconds whether the base knows such pictures.
_PROBE_IMAGES = 1000

# A caption finds its image when fewer than this many others are more similar.
_PROBE_DEPTH = 10

# A small corpus would be repeated without end to reach a number of views.
_MAX_EPOCHS = 40

# About half of what the base was made with: it is trained further, not anew.
_LEARNING_RATE = 8e-4

# Epochs of the towers for each one of the teacher, a small head on frozen towers.
_TEACHER_SHARE = 5

# Images embedded at once, which bounds memory.
_EMBED_IMAGES = 2048


@dataclass(frozen=True, slots=True)
class AdaptConfig:
    """How many image views (images times epochs) each half of an adaptation has, and the seed."""

    contrastive_views: int = 40_000
    pretrain_views: int = 16_000
    seed: int = 0

    def epochs(self, views: int, images: int) -> int:
        """Whole epochs for that many views, between 1 and `_MAX_EPOCHS`."""
        return max(1, min(_MAX_EPOCHS, round(views / images)))


def base_recall(base: Base, data: CaptionedImages, seed: int) -> float:
    """Recall@10 of the base's encoder, with one caption each of at most `_PROBE_IMAGES` images.

    It tells whether the base knows this kind of picture.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data))[:_PROBE_IMAGES]
    encoder = base.encoder
    texts = encoder.embed_texts(pick_captions(data, rows, rng))
    images = encoder.embed_images([data.pixels[row] for row in rows])
    scores = texts @ images.T
    better = (scores > np.diag(scores)[:, None]).sum(1)
    return float((better < _PROBE_DEPTH).mean())


def adapt(base: Base, data: CaptionedImages, config: AdaptConfig, progress: Progress) -> Base:
    """Train the base's towers, teacher and backbone further, in place, on images with captions.

    Returns the base with what was done in `about`.
    """
    contrastive = adapt_towers(base, data, config, progress)
    epochs = contrastive.epochs
    teacher = replace(contrastive, epochs=max(1, epochs // _TEACHER_SHARE))
    train_teacher(base.cross, base.towers, base.tokenizer, data, teacher, progress)
    pretraining = PretrainConfig(
        epochs=config.epochs(config.pretrain_views, len(data)),
        learning_rate=_LEARNING_RATE,
        seed=config.seed,
    )
    pretrain_base(base, data, pretraining, progress)
    adapted = {
        "images": len(data),
        "contrastive_epochs": epochs,
        "pretrain_epochs": pretraining.epochs,
    }
    return replace(base, about={**base.about, "adapted": adapted})


def adapt_towers(
    base: Base, data: CaptionedImages, config: AdaptConfig, progress: Progress
) -> ContrastiveConfig:
    """Train the base's encoder further, in place; returns the numbers that it was trained with."""
    contrastive = ContrastiveConfig(
        epochs=config.epochs(config.contrastive_views, len(data)),
        learning_rate=_LEARNING_RATE,
        limit=base.limit,
        seed=config.seed,
    )
    train_two_tower(base.towers, base.tokenizer, data, contrastive, progress)
    return contrastive


def adapt_to_encoder(
    base: Base,
    data: CaptionedImages,
    encoder: Encoder,
    images: FloatArray,
    config: AdaptConfig,
    progress: Progress,
) -> Base:
    """Train the base's backbone, in place, to see and to read as a pretrained encoder does.

    `images` (N, D) float32 are the encoder's vectors of the images. The base's own towers stay as
    they are, for nothing asks them. Returns the base with what was done in `about`.
    """
    pretraining = PretrainConfig(
        epochs=config.epochs(config.pretrain_views, len(data)),
        learning_rate=_LEARNING_RATE,
        seed=config.seed,
    )
    texts = CaptionVectors(encoder, {})
    _pretrain_from(base, data, images, texts.of, pretraining, progress)
    adapted = {"images": len(data), "pretrain_epochs": pretraining.epochs}
    return replace(base, about={**base.about, "adapted_to_encoder": adapted})


def pretrain_base(
    base: Base,
    data: CaptionedImages,
    config: PretrainConfig,
    progress: Progress,
    labels: PlacedLabels | None = None,
) -> float:
    """Teach the base's backbone to see and to read from the base's own encoder.

    `labels` of the images teach its vision tower too. Returns the mean loss of the last epoch.
    """
    images = _embed_in_parts(base, data)
    return _pretrain_from(base, data, images, base.encoder.embed_texts, config, progress, labels)


def _pretrain_from(
    base: Base,
    data: CaptionedImages,
    images: FloatArray,
    embed_texts: Callable[[list[str]], FloatArray],
    config: PretrainConfig,
    progress: Progress,
    labels: PlacedLabels | None = None,
) -> float:
    # The heads draw their first weights.
    torch.manual_seed(config.seed)
    heads = DistillHeads(base.size.hidden, images.shape[1]).to(base.backbone.device)
    # The base has no identifier tokens yet.
    prompts = PromptBuilder(base.tokenizer, [], base.limit)
    preprocessor = ImagePreprocessor.tiny(base.size)
    hints = None
    if labels is not None:
        side = base.size.image_px // base.size.patch_px // MERGE
        hints = TokenHints(labels, side, base.size.hidden).to(base.backbone.device)
    trainer = Pretrainer(base.backbone, prompts, preprocessor, heads, config, hints)
    return pretrain(trainer, data, images, embed_texts, progress)


@dataclass(frozen=True, slots=True)
class CaptionVectors:
    """An encoder's vectors of captions, each computed once: every epoch asks for them again."""

    encoder: Encoder
    known: dict[str, FloatArray]

    def of(self, captions: list[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B captions."""
        new = sorted(set(captions) - self.known.keys())
        self.known.update(zip(new, self.encoder.embed_texts(new), strict=True))
        return np.stack([self.known[caption] for caption in captions])


def _embed_in_parts(base: Base, data: CaptionedImages) -> FloatArray:
    """(N, D) float32 vectors of all images."""
    encoder = base.encoder
    vectors: list[FloatArray] = []
    for part in np.array_split(data.pixels, max(1, len(data) // _EMBED_IMAGES)):
        vectors.append(encoder.embed_images(list(part)))
    return np.concatenate(vectors)
