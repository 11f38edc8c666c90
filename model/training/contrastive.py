"""Stage 0, first half: train the contrastive encoder and the teacher on images with captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.network.encoder import TwoTower, token_batch
from model.network.teacher import CrossHead
from model.progress import Progress, quiet
from schemas.records import ByteArray


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """Numbers of the contrastive training; `shift_px` is the largest random translation of a training image."""

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
    """Training data in memory: `pixels` (N, side, side, 3) uint8 and for each image its captions (at least one)."""

    pixels: ByteArray
    captions: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.pixels)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the steps, then a cosine to zero."""
    first = max(1, int(steps * warmup))

    def factor(step: int) -> float:
        return (
            (step + 1) / first
            if step < first
            else 0.5 * (1 + float(np.cos(np.pi * (step - first) / max(1, steps - first))))
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def to_float(
    pixels: ByteArray, rows: np.ndarray, rng: np.random.Generator | None, shift_px: int
) -> Tensor:
    """(B, 3, side, side) float32 in -1..1 of the chosen rows; with `rng` each image is moved by up to `shift_px`."""
    batch = (
        torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    )  # stays channels-last: faster on CPU
    if rng is None or shift_px == 0:
        return batch
    side = batch.shape[-1]
    padded = F.pad(batch, (shift_px,) * 4, mode="replicate")
    moves = rng.integers(0, 2 * shift_px + 1, size=(len(rows), 2))
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, moves, strict=True)]
    )


def pick_captions(data: CaptionedImages, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
    """One random caption for each row."""
    return [data.captions[row][int(rng.integers(len(data.captions[row])))] for row in rows]


def train_two_tower(
    towers: TwoTower,
    tokenizer: PreTrainedTokenizerBase,
    data: CaptionedImages,
    config: ContrastiveConfig,
    progress: Progress = quiet,
) -> float:
    """Train in place with the symmetric InfoNCE loss; returns the mean loss of the last epoch."""
    rng = np.random.default_rng(config.seed)
    batch = min(config.batch, len(data))
    steps = config.epochs * max(1, len(data) // batch)
    optimizer = torch.optim.AdamW(
        towers.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = cosine_schedule(optimizer, steps, config.warmup)
    device = towers.log_scale.device
    towers.train()
    losses: list[float] = []
    with progress("contrastive encoder", steps) as bar:
        for _ in range(config.epochs):
            losses.clear()
            order = rng.permutation(len(data))
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                tokens, mask = token_batch(tokenizer, pick_captions(data, rows, rng), config.limit)
                pixels = to_float(data.pixels, rows, rng, config.shift_px)
                loss = towers.loss(pixels.to(device), tokens.to(device), mask.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
                optimizer.step()
                schedule.step()
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
    """Train the cross-encoder head on matching pairs and in-batch hard negatives; returns the last epoch's accuracy.

    The towers stay frozen. The negative of a pair is the most similar wrong caption of the batch, so that the teacher
    learns what the two towers alone confuse.
    """
    rng = np.random.default_rng(config.seed + 1)
    batch = min(config.batch, len(data))
    steps = config.epochs * max(1, len(data) // batch)
    optimizer = torch.optim.AdamW(
        head.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = cosine_schedule(optimizer, steps, config.warmup)
    hits: list[float] = []
    device = towers.log_scale.device
    head.train()
    with progress("teacher", steps) as bar:
        for _ in range(config.epochs):
            hits.clear()
            order = rng.permutation(len(data))
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                with torch.no_grad():
                    grid, image = towers.image(to_float(data.pixels, rows, None, 0).to(device))
                    tokens, mask = token_batch(
                        tokenizer, pick_captions(data, rows, rng), config.limit
                    )
                    tokens, mask = tokens.to(device), mask.to(device)
                    states, text = towers.text(tokens, mask)
                    hard = (image @ text.T).fill_diagonal_(-2.0).argmax(1)
                good = head(grid, image, states, mask, text)
                bad = head(grid, image, states[hard], mask[hard], text[hard])
                logits = torch.cat([good, bad])
                target = torch.cat([torch.ones_like(good), torch.zeros_like(bad)])
                loss = F.binary_cross_entropy_with_logits(logits, target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                hits.append(((logits > 0) == (target > 0.5)).float().mean().item())
                bar.update(1, accuracy=hits[-1])
    head.eval()
    return float(np.mean(hits))
