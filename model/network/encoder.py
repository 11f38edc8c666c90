"""Encoders: text and images as unit vectors in one space. They feed the codebook and rank the members of a leaf.

`Encoder` is the interface; `SmallEncoder` is the two-tower model trained here for the `tiny` profile, `JinaEncoder`
(`model/jina.py`) the paper's choice.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from model.network.resize import Pixels, resize
from schemas.records import FloatArray


class Encoder(Protocol):
    """Two towers into one space. Rows have unit length; `scale` turns a cosine into a logit."""

    width: int
    scale: float

    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        ...


def channels_last(module: Any) -> Any:
    """The module with its convolutions in the layout that CPUs and tensor cores prefer."""
    return module.to(memory_format=torch.channels_last)


class ImageTower(nn.Module):
    """Small CNN with one attention layer on its 7×7 grid. (N, 3, 56, 56) → grid (N, 49, C) and embedding (N, D)."""

    def __init__(self, width: int, channels: int = 128) -> None:
        super().__init__()
        sizes = [3, 32, 64, channels]
        self.stem = nn.Sequential(
            *(
                layer
                for a, b in itertools.pairwise(sizes)
                for layer in (
                    nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.GELU(),
                )
            )
        )
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )
        self.position = nn.Parameter(torch.randn(49, channels) * 0.02)
        self.attention = nn.TransformerEncoderLayer(
            channels, 4, 2 * channels, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.project = nn.Linear(2 * channels, width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(pixels)
        grid = (features + self.mix(features)).flatten(2).transpose(1, 2) + self.position
        grid = self.attention(grid)
        pooled = torch.cat([grid.mean(1), grid.amax(1)], dim=-1)
        return grid, F.normalize(self.project(pooled), dim=-1)


class TextTower(nn.Module):
    """Small transformer. (B, T) token ids and mask → states (B, T, C) and embedding (B, D)."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        channels: int = 128,
        layers: int = 2,
        positions: int = 192,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, channels)
        self.position = nn.Parameter(torch.randn(positions, channels) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                channels, 4, 3 * channels, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.project = nn.Linear(2 * channels, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.embed(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=~mask)
        kept = mask.unsqueeze(-1)
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
        peak = states.masked_fill(~kept, -1e4).amax(1)
        return states, F.normalize(self.project(torch.cat([mean, peak], dim=-1)), dim=-1)


class TwoTower(nn.Module):
    """The contrastive model: both towers and a learned temperature (as in CLIP, Radford et al. 2021)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.image = channels_last(ImageTower(width))
        self.text = TextTower(vocabulary, width)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def loss(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Symmetric InfoNCE over the batch; row i of the images belongs to row i of the texts."""
        _, images = self.image(pixels)
        _, texts = self.text(tokens, mask)
        logits = self.log_scale.exp().clamp(max=100.0) * images @ texts.T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pixel_batch(images: Pixels, side_px: int) -> Tensor:
    """(N, 3, side, side) float32 in -1..1."""
    stacked = np.stack([resize(image, side_px) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def token_batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int
) -> tuple[Tensor, Tensor]:
    """(B, T) ids and boolean mask, right-padded, cut at `limit` tokens; an empty text becomes one end token."""
    rows = [
        ids[:limit] or [int(tokenizer.eos_token_id)]
        for ids in tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
    ]
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), int(tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    return tokens, mask


class SmallEncoder:
    """The `tiny` profile's encoder: a trained `TwoTower` behind the `Encoder` interface."""

    def __init__(
        self,
        towers: TwoTower,
        tokenizer: PreTrainedTokenizerBase,
        side_px: int,
        limit: int,
        batch: int = 64,
    ) -> None:
        self.towers = towers.eval()
        self.tokenizer = tokenizer
        self.side_px = side_px
        self.limit = limit
        self.batch = batch
        self.width = int(towers.image.project.out_features)
        self.scale = float(towers.log_scale.detach().exp().clamp(max=100.0))

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.towers.log_scale.device

    @torch.inference_mode()
    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        parts = [
            self.towers.image(
                pixel_batch(images[start : start + self.batch], self.side_px).to(self.device)
            )[1]
            .cpu()
            .numpy()
            for start in range(0, len(images), self.batch)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        parts = []
        for start in range(0, len(texts), self.batch):
            tokens, mask = token_batch(
                self.tokenizer, texts[start : start + self.batch], self.limit
            )
            parts.append(
                self.towers.text(tokens.to(self.device), mask.to(self.device))[1].cpu().numpy()
            )
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)
