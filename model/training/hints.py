"""Hints: what a small encoder does not learn from captions alone.

Colours and grounds tell the pictures of a batch apart, so the contrastive loss hardly ever asks for
a shape: from captions alone the towers of `tiny` learn nothing of shapes in 12 epochs
(docs/experiments/shapes.md). Three hints make them look: labels of what is where, which the image
tower's grid must tell; words that are true of a picture, which its vector must tell; and beside
each caption the same one with a word exchanged, which lies as near as only a look at the picture
can tell (Yuksekgonul et al. 2023, arXiv 2210.01936).

Letters in shapes: N images, B rows of a batch, P places, A attributes of an object, T tokens,
W words.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.encoder import CHANNELS, TwoTower
from schemas.records import BoolArray, IntArray

# How much the places weigh beside the contrastive loss: with a quarter of it shapes are learnt
# several times slower (docs/experiments/shapes.md).
PLACE_WEIGHT = 4.0

# The caption with a word exchanged.
Exchange = Callable[[str, np.random.Generator], str]


@dataclass(frozen=True, slots=True)
class PlacedLabels:
    """What objects N images have at P places, in A attributes, and which of W words are true."""

    cells: tuple[int, ...]
    """(P,) cells of the image tower's grid that the places lie in."""
    classes: tuple[int, ...]
    """(A,) how many values each attribute has, 0 among them: nothing is there."""
    values: IntArray
    """(N, P, A)"""
    words: BoolArray
    """(N, W)"""


@dataclass(frozen=True, slots=True)
class Hints:
    """What a contrastive training is told beyond images and captions."""

    labels: PlacedLabels
    exchange: Exchange


class HintedLoss(nn.Module):
    """The contrastive loss with exchanged captions, plus that of the labels."""

    def __init__(self, towers: TwoTower, labels: PlacedLabels) -> None:
        super().__init__()
        self.towers = towers
        self.labels = labels
        self.head = nn.Linear(CHANNELS, sum(labels.classes))
        width = towers.image.project.out_features
        self.word_head = nn.Linear(width, labels.words.shape[1])
        # Unit vectors as long as the head of a layer expects its inputs to be.
        self.length = width**0.5

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor, rows: IntArray) -> Tensor:
        """A scalar, of B images that are the `rows` of the labels.

        `tokens` and `mask` (2B, T): each image's caption, then the exchanged ones in the same
        order.
        """
        grid, images = self.towers.image(pixels)
        _, texts = self.towers.text(tokens, mask)
        logits = self.towers.scale * images @ texts.T  # (B, 2B)
        count = len(images)
        target = torch.arange(count, device=logits.device)
        by_image = F.cross_entropy(logits, target)
        # No image belongs to an exchanged caption.
        by_text = F.cross_entropy(logits[:, :count].T, target)
        contrastive = (by_image + by_text) / 2
        return contrastive + self._place_loss(grid, rows) + self._word_loss(images, rows)

    def _place_loss(self, grid: Tensor, rows: IntArray) -> Tensor:
        """Cross-entropies of the attributes, nats of a place each, added; `grid` (B, cells, C)."""
        values = torch.from_numpy(self.labels.values[rows]).to(grid.device)
        predicted = self.head(grid[:, list(self.labels.cells)])
        losses: list[Tensor] = []
        for number, logits in enumerate(predicted.split(list(self.labels.classes), dim=-1)):
            losses.append(F.cross_entropy(logits.flatten(0, 1), values[..., number].flatten()))
        return PLACE_WEIGHT * torch.stack(losses).sum()

    def _word_loss(self, images: Tensor, rows: IntArray) -> Tensor:
        """Cross-entropies of the words, nats of an image each, added; `images` (B, D)."""
        words = torch.from_numpy(self.labels.words[rows]).to(images)
        predicted = self.word_head(images * self.length)
        return F.binary_cross_entropy_with_logits(predicted, words) * words.shape[1]
