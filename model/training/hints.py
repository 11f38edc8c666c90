"""Hints: what a small encoder does not learn from captions alone.

Colours and grounds tell the pictures of a batch apart, so the contrastive loss hardly ever asks for
a shape: from captions alone the towers of `tiny` learn nothing of shapes in 12 epochs
(docs/experiments/shapes.md). Three hints make them look: labels of what is where, which the image
tower's grid must tell; words that are true of a picture, which its vector must tell; and beside
each caption the same one with a word exchanged, which lies as near as only a look at the picture
can tell (Yuksekgonul et al. 2023, arXiv 2210.01936). The labels teach the backbone's vision tower
too: what it does not see, no identifier of a new picture can say.

Letters in shapes: N images, B rows of a batch, P places, A attributes of an object, T tokens,
W words.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.encoder import CHANNELS, GRID_CELLS, TwoTower
from schemas.records import BoolArray, IntArray

# How much the places weigh beside the contrastive loss: with a quarter of it shapes are learnt
# several times slower (docs/experiments/shapes.md).
PLACE_WEIGHT = 4.0

# The caption with a word exchanged.
Exchange = Callable[[str, np.random.Generator], str]


@dataclass(frozen=True, slots=True)
class PlacedLabels:
    """What objects N images have at P places, in A attributes, and which of W words are true."""

    places: tuple[tuple[float, float], ...]
    """(P,) where the places are: across and down, as shares of the picture."""
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
        side = round(GRID_CELLS**0.5)
        self.cells = [
            int(down * side) * side + int(across * side) for across, down in labels.places
        ]
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
        places = self.head(grid[:, self.cells])
        words = self.word_head(images * self.length)
        return contrastive + label_loss(self.labels, rows, places, words)


class TokenHints(nn.Module):
    """The loss of the labels for the tokens of a vision tower, a square grid of them.

    A token may end where a place begins, so what is at a place is read from the four around it.
    """

    def __init__(self, labels: PlacedLabels, side: int, hidden: int) -> None:
        super().__init__()
        self.labels = labels
        self.around = [_four_around(across, down, side) for across, down in labels.places]
        self.head = nn.Linear(4 * hidden, sum(labels.classes))
        self.word_head = nn.Linear(2 * hidden, labels.words.shape[1])

    def forward(self, tokens: Tensor, rows: IntArray) -> Tensor:
        """A scalar; `tokens` (B, side², H) are of B images, the `rows` of the labels."""
        places = self.head(tokens[:, self.around].flatten(2))
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)
        return label_loss(self.labels, rows, places, self.word_head(pooled))


def label_loss(labels: PlacedLabels, rows: IntArray, places: Tensor, words: Tensor) -> Tensor:
    """Cross-entropies of attributes (nats of a place) and words (nats of an image), added.

    `places` (B, P, values of all attributes) and `words` (B, W) are logits for B images, the `rows`
    of the labels.
    """
    values = torch.from_numpy(labels.values[rows]).to(places.device)
    losses: list[Tensor] = []
    for number, logits in enumerate(places.split(list(labels.classes), dim=-1)):
        losses.append(F.cross_entropy(logits.flatten(0, 1), values[..., number].flatten()))
    true = torch.from_numpy(labels.words[rows]).to(words)
    word_loss = F.binary_cross_entropy_with_logits(words, true) * true.shape[1]
    return PLACE_WEIGHT * torch.stack(losses).sum() + word_loss


def _four_around(across: float, down: float, side: int) -> list[int]:
    """The four tokens of a grid of side² that lie nearest to a place."""
    column, row = (
        min(max(round(share * side) - 1, 0), max(side - 2, 0)) for share in (across, down)
    )
    far = min(1, side - 1)
    return [(row + below) * side + column + right for below in (0, far) for right in (0, far)]
