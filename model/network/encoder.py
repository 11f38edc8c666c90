"""Encoders: texts and images as unit vectors in one space. They feed the codebook and rank images.

`Encoder` is the interface. `SmallEncoder` is the two-tower model of the `tiny` profile, trained in
stage 0; `model.network.jina.JinaEncoder` is the paper's choice; `model.network.encoders` has those
that other people trained.

Letters in shapes: N images, B texts, T tokens of a text, C channels, D width of the embedding.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.inputs import pad_rows
from model.network.resize import Pixels, resize
from schemas.records import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Width of both towers and of the teacher's head.
CHANNELS = 128

# Attention heads of both towers and of the teacher's head.
HEADS = 4

# Cells of the image tower's grid: 56 px, halved three times, squared.
GRID_CELLS = 49

# Bound of the learned temperature's inverse, as in CLIP: without it training may diverge.
MAX_SCALE = 100.0

# What the temperature starts from, as in CLIP (Radford et al. 2021).
_FIRST_TEMPERATURE = 0.07

# Stands in for a padded position in a maximum: below any state, and finite in half precision.
_MASKED = -1e4


class Encoder(Protocol):
    """Two towers into one space. Rows have unit length; `scale` turns a cosine into a logit.

    It is frozen: a `FittableEncoder` gives another one that has learnt from captions.
    """

    width: int
    scale: float

    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        ...


@runtime_checkable
class FittableEncoder(Encoder, Protocol):
    """An encoder with a part that learns from a corpus; without captions it is used as it is."""

    def fitted(self, images: Pixels, captions: Sequence[Sequence[str]], seed: int) -> Encoder:
        """A new encoder that has learnt from images with at least one caption each.

        The same arguments give the same encoder.
        """
        ...


def channels_last(module: Any) -> Any:
    """The module with its convolutions in the layout that CPUs and tensor cores prefer."""
    return module.to(memory_format=torch.channels_last)


class ImageTower(nn.Module):
    """Small CNN with one attention layer on its 7x7 grid."""

    def __init__(self, width: int, channels: int = CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise([3, 32, 64, channels]):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.GELU())
        self.stem = nn.Sequential(*layers)
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )
        self.position = nn.Parameter(torch.randn(GRID_CELLS, channels) * 0.02)
        self.attention = nn.TransformerEncoderLayer(
            channels, HEADS, 2 * channels, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.project = nn.Linear(2 * channels, width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 56, 56) pixels in -1..1 → grid (N, 49, C) and unit embedding (N, D)."""
        features = self.stem(pixels)  # (N, C, 7, 7)
        features = features + self.mix(features)
        grid = features.flatten(2).transpose(1, 2) + self.position
        grid = self.attention(grid)  # (N, 49, C)
        pooled = torch.cat([grid.mean(1), grid.amax(1)], dim=-1)
        return grid, F.normalize(self.project(pooled), dim=-1)


class TextTower(nn.Module):
    """Small transformer over a text's tokens."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        channels: int = CHANNELS,
        layers: int = 2,
        positions: int = 192,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, channels)
        self.position = nn.Parameter(torch.randn(positions, channels) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                channels, HEADS, 3 * channels, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.project = nn.Linear(2 * channels, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) int64 tokens and bool mask → states (B, T, C) and unit embedding (B, D)."""
        states = self.embed(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=~mask)
        kept = mask.unsqueeze(-1)  # (B, T, 1)
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
        peak = states.masked_fill(~kept, _MASKED).amax(1)
        pooled = torch.cat([mean, peak], dim=-1)
        return states, F.normalize(self.project(pooled), dim=-1)


class TwoTower(nn.Module):
    """The contrastive model: both towers and a learned temperature (CLIP, Radford et al. 2021)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.image = channels_last(ImageTower(width))
        self.text = TextTower(vocabulary, width)
        log_scale = np.log(1 / _FIRST_TEMPERATURE)
        self.log_scale = nn.Parameter(torch.tensor(log_scale, dtype=torch.float32))

    @property
    def scale(self) -> Tensor:
        """What multiplies cosines, a scalar: the inverse of the temperature, at most 100."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def loss(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Symmetric InfoNCE over the batch; row i of the images belongs to row i of the texts."""
        _, images = self.image(pixels)
        _, texts = self.text(tokens, mask)
        logits = self.scale * images @ texts.T  # (B, B)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pixel_batch(images: Pixels, side_px: int) -> Tensor:
    """(N, 3, side, side) float32 in -1..1 of images of any size."""
    stacked = np.stack([resize(image, side_px) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def token_batch(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], limit: int
) -> tuple[Tensor, Tensor]:
    """(B, T) int64 tokens and bool mask, padded on the right and cut at `limit` tokens.

    An empty text becomes one end token, because a row needs one.
    """
    # Split: a text that spells a control token stays text.
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    end = int(tokenizer.eos_token_id)
    rows = [tokens[:limit] or [end] for tokens in encoded["input_ids"]]
    return pad_rows(rows, int(tokenizer.pad_token_id))


class SmallEncoder:
    """The `tiny` profile's encoder: a trained `TwoTower` behind the `Encoder` interface."""

    def __init__(
        self,
        towers: TwoTower,
        tokenizer: "PreTrainedTokenizerBase",
        side_px: int,
        limit: int,
        batch: int = 64,
    ) -> None:
        """`limit`: tokens of a text. `batch`: images or texts that pass a tower at once."""
        self.towers = towers.eval()
        self.tokenizer = tokenizer
        self.side_px = side_px
        self.limit = limit
        self.batch = batch
        self.width = int(towers.image.project.out_features)
        self.scale = float(towers.scale.detach())

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.towers.log_scale.device

    @torch.inference_mode()
    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        vectors = [np.zeros((0, self.width), dtype=np.float32)]
        for start in range(0, len(images), self.batch):
            pixels = pixel_batch(images[start : start + self.batch], self.side_px)
            _, embedded = self.towers.image(pixels.to(self.device))
            vectors.append(embedded.cpu().numpy())
        return np.concatenate(vectors)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        vectors = [np.zeros((0, self.width), dtype=np.float32)]
        for start in range(0, len(texts), self.batch):
            batch = texts[start : start + self.batch]
            tokens, mask = token_batch(self.tokenizer, batch, self.limit)
            _, embedded = self.towers.text(tokens.to(self.device), mask.to(self.device))
            vectors.append(embedded.cpu().numpy())
        return np.concatenate(vectors)
