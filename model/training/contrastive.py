"""Stage 0, first half: train the contrastive encoder and the teacher on images with captions.

Letters in shapes: N images, B rows of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.network.encoder import TwoTower, token_batch
from model.network.teacher import CrossHead
from model.progress import Progress, quiet
from model.training.hints import HintedLoss, Hints
from model.training.optimizer import CosineAdamW
from schemas.records import ByteArray, IntArray

# Bound of the gradient's norm while the towers are trained.
CLIP = 1.0

# Below any cosine: takes a pair's own caption out of the search for its hard negative.
NOT_THE_NEGATIVE = -2.0


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """Numbers of the contrastive training.

    `batch` is a number of images, `warmup` a share of the steps, `limit` a number of tokens of a
    caption. `shift_px` is the largest random translation of a training image, in pixels.
    """

    epochs: int = 20
    batch: int = 192
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.06
    shift_px: int = 3
    limit: int = 96
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CaptionedImages:
    """Training data in memory.

    `pixels` (N, side, side, 3) uint8; each image has at least one caption.
    """

    pixels: ByteArray
    captions: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.pixels)


def train_two_tower(
    towers: TwoTower,
    tokenizer: PreTrainedTokenizerBase,
    data: CaptionedImages,
    config: ContrastiveConfig,
    progress: Progress = quiet,
    hints: Hints | None = None,
) -> float:
    """Train the towers in place with the symmetric InfoNCE loss, and with hints where given.

    Returns the mean loss of the last epoch.
    """
    rng = np.random.default_rng(config.seed)
    batch = min(config.batch, len(data))
    steps = config.epochs * batches_per_epoch(len(data), batch)
    device = towers.log_scale.device
    hinted = None if hints is None else HintedLoss(towers, hints.labels).to(device)
    optimizer = CosineAdamW(
        (hinted or towers).parameters(),
        steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip=CLIP,
    )
    towers.train()
    losses: list[float] = []
    with progress("contrastive encoder", steps) as bar:
        for _ in range(config.epochs):
            # Only the last epoch's losses are reported.
            losses.clear()
            for rows in shuffled_batches(len(data), batch, rng):
                captions = pick_captions(data, rows, rng)
                if hints is not None:
                    captions += [hints.exchange(caption, rng) for caption in captions]
                tokens, mask = token_batch(tokenizer, captions, config.limit)
                pixels = shifted_pixels(data.pixels, rows, rng, config.shift_px).to(device)
                texts = (tokens.to(device), mask.to(device))
                loss = hinted(pixels, *texts, rows) if hinted else towers.loss(pixels, *texts)
                optimizer.step(loss)
                losses.append(loss.item())
                bar.update(1, loss=losses[-1])
    towers.eval()
    return float(np.mean(losses))


def train_teacher(
    head: CrossHead,
    towers: TwoTower,
    tokenizer: PreTrainedTokenizerBase,
    data: CaptionedImages,
    config: ContrastiveConfig,
    progress: Progress = quiet,
) -> float:
    """Train the cross-encoder head in place; the towers stay frozen.

    It learns to tell matching pairs from hard negatives.

    Returns the mean accuracy of the last epoch.
    """
    # Another seed than the towers': they have seen their own order of images and captions.
    rng = np.random.default_rng(config.seed + 1)
    batch = min(config.batch, len(data))
    steps = config.epochs * batches_per_epoch(len(data), batch)
    optimizer = CosineAdamW(
        head.parameters(),
        steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip=None,
    )
    accuracies: list[float] = []
    head.train()
    with progress("teacher", steps) as bar:
        for _ in range(config.epochs):
            accuracies.clear()
            for rows in shuffled_batches(len(data), batch, rng):
                captions = pick_captions(data, rows, rng)
                tokens, mask = token_batch(tokenizer, captions, config.limit)
                logits, target = _pair_logits(
                    head, towers, to_pixels(data.pixels, rows), tokens, mask
                )
                loss = F.binary_cross_entropy_with_logits(logits, target)
                optimizer.step(loss)
                correct = (logits > 0) == (target > 0.5)
                accuracies.append(correct.float().mean().item())
                bar.update(1, accuracy=accuracies[-1])
    head.eval()
    return float(np.mean(accuracies))


def _pair_logits(
    head: CrossHead, towers: TwoTower, pixels: Tensor, tokens: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of B matching and B wrong pairs, and their targets, 1 and 0, (2·B,) float32 each.

    The wrong caption of an image is the most similar other one of the batch, so that the teacher
    learns what the two towers alone confuse.
    """
    device = towers.log_scale.device
    # The towers are frozen: only the head needs a gradient.
    with torch.no_grad():
        grid, image = towers.image(pixels.to(device))
        tokens = tokens.to(device)
        mask = mask.to(device)
        states, text = towers.text(tokens, mask)
        similarity = (image @ text.T).fill_diagonal_(NOT_THE_NEGATIVE)
        wrong = similarity.argmax(1)
    matching = head(grid, image, states, mask, text)
    mismatched = head(grid, image, states[wrong], mask[wrong], text[wrong])
    logits = torch.cat([matching, mismatched])
    target = torch.cat([torch.ones_like(matching), torch.zeros_like(mismatched)])
    return logits, target


def batches_per_epoch(images: int, batch: int) -> int:
    """How many whole batches an epoch has, at least one."""
    return max(1, images // batch)


def shuffled_batches(images: int, batch: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """The rows of one epoch's batches in random order, (B,) int64 each.

    Rows that fill no whole batch are left out.
    """
    order = rng.permutation(images)
    for start in range(0, images - batch + 1, batch):
        yield order[start : start + batch]


def pick_captions(data: CaptionedImages, rows: IntArray, rng: np.random.Generator) -> list[str]:
    """One random caption of each of the (B,) rows."""
    picked: list[str] = []
    for row in rows:
        captions = data.captions[row]
        picked.append(captions[int(rng.integers(len(captions)))])
    return picked


def to_pixels(pixels: ByteArray, rows: IntArray) -> Tensor:
    """(B, 3, side, side) float32 in -1..1 of the chosen rows of (N, side, side, 3) uint8."""
    # The permutation keeps the memory channels-last, which is faster on a CPU.
    channels_first = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2)
    return channels_first.float().div_(127.5).sub_(1.0)


def shifted_pixels(
    pixels: ByteArray, rows: IntArray, rng: np.random.Generator, shift_px: int
) -> Tensor:
    """`to_pixels`, each image moved by up to `shift_px` pixels at random, its border repeated."""
    batch = to_pixels(pixels, rows)
    if shift_px == 0:
        return batch
    side = batch.shape[-1]
    padded = F.pad(batch, (shift_px,) * 4, mode="replicate")
    corners = rng.integers(0, 2 * shift_px + 1, size=(len(rows), 2))
    shifted: list[Tensor] = []
    for image, (top, left) in zip(padded, corners, strict=True):
        shifted.append(image[:, top : top + side, left : left + side])
    return torch.stack(shifted)
