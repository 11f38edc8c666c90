"""Teachers score how well a caption fits an image: the soft labels of paper equation 7.

`Teacher` is the interface. `SmallTeacher` is trained in stage 0 for the `tiny` profile;
`model.network.jina.JinaTeacher` is the paper's jina-reranker-m0.

Letters in shapes: P pairs, T tokens of a caption, C channels, D width of the embedding.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.network.encoder import CHANNELS, HEADS, SmallEncoder, pixel_batch, token_batch
from model.network.resize import Pixels
from schemas.records import ByteArray, FloatArray

# Pairs that are scored at once.
BATCH = 128

# Stands in for a padded position in a minimum: above any state, and finite in half precision.
_MASKED = 1e4


class Teacher(Protocol):
    """Scores pairs of image and caption jointly."""

    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        ...


class CrossHead(nn.Module):
    """Joint encoding on the frozen towers: caption states attend to the image's grid."""

    def __init__(self, channels: int = CHANNELS, width: int = 128) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        self.score = nn.Sequential(
            nn.Linear(2 * channels + width, 128), nn.GELU(), nn.Linear(128, 1)
        )

    def forward(
        self, grid: Tensor, image: Tensor, states: Tensor, mask: Tensor, text: Tensor
    ) -> Tensor:
        """Logits (P,) of pairs.

        `grid` (P, 49, C) and `image` (P, D) come from the image tower, `states` (P, T, C) and
        `text` (P, D) from the text tower, with the caption's `mask` (P, T) bool.
        """
        # Which part of the image speaks for each token of the caption, (P, T, C).
        attended, _ = self.cross(states, grid, grid, need_weights=False)
        joint = self.norm(states + attended)
        kept = mask.unsqueeze(-1)  # (P, T, 1)
        mean = (joint * kept).sum(1) / kept.sum(1).clamp(min=1)
        # The minimum over tokens lets one word that does not fit the image lower the score.
        lowest = joint.masked_fill(~kept, _MASKED).amin(1)
        features = torch.cat([mean, lowest, image * text], dim=-1)
        return self.score(features).squeeze(-1)


class SmallTeacher:
    """The `tiny` profile's teacher: a `CrossHead` on the small encoder's towers."""

    def __init__(self, head: CrossHead, encoder: SmallEncoder) -> None:
        self.head = head.eval()
        self.encoder = encoder

    @torch.inference_mode()
    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        scores = [np.zeros(0, dtype=np.float32)]
        for start in range(0, len(captions), BATCH):
            stop = start + BATCH
            scores.append(self._score_batch(images[start:stop], captions[start:stop]))
        return np.concatenate(scores)

    def _score_batch(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        encoder = self.encoder
        device = encoder.device
        distinct, rows = _distinct_images(images)
        pixels = pixel_batch(distinct, encoder.side_px)
        grid, image = encoder.towers.image(pixels.to(device))
        tokens, mask = token_batch(encoder.tokenizer, captions, encoder.limit)
        mask = mask.to(device)
        states, text = encoder.towers.text(tokens.to(device), mask)
        chosen = torch.tensor(rows, device=device)
        logits = self.head(grid[chosen], image[chosen], states, mask, text)
        scores: FloatArray = torch.sigmoid(logits).cpu().numpy()
        return scores


def _distinct_images(images: Pixels) -> tuple[list[ByteArray], list[int]]:
    """The distinct array objects among (P,) images, and the row of each image among them.

    An image with several captions comes once for each; it is encoded once.
    """
    row_of: dict[int, int] = {}
    distinct: list[ByteArray] = []
    rows: list[int] = []
    for image in images:
        if id(image) not in row_of:
            row_of[id(image)] = len(distinct)
            distinct.append(image)
        rows.append(row_of[id(image)])
    return distinct, rows
