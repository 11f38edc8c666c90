"""Teachers: the cross-encoder that scores how well a caption fits an image, the soft labels of paper equation 7.

`Teacher` is the interface; `SmallTeacher` is trained here for the `tiny` profile, `JinaTeacher` (`model/jina.py`) is the
paper's jina-reranker-m0.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.network.encoder import SmallEncoder, pixel_batch, token_batch
from model.network.resize import Pixels
from schemas.records import FloatArray


class Teacher(Protocol):
    """Joint scoring of pairs."""

    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        ...


class CrossHead(nn.Module):
    """Joint encoding on top of the frozen towers: caption states attend to the image grid, then an MLP gives one logit."""

    def __init__(self, channels: int = 128, width: int = 128) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        self.score = nn.Sequential(
            nn.Linear(2 * channels + width, 128), nn.GELU(), nn.Linear(128, 1)
        )

    def forward(
        self, grid: Tensor, image: Tensor, states: Tensor, mask: Tensor, text: Tensor
    ) -> Tensor:
        """Grid (P, 49, C), image (P, D), states (P, T, C), mask (P, T), text (P, D) → logits (P,)."""
        attended, _ = self.cross(states, grid, grid, need_weights=False)
        joint = self.norm(states + attended)
        kept = mask.unsqueeze(-1)
        mean = (joint * kept).sum(1) / kept.sum(1).clamp(min=1)
        low = joint.masked_fill(~kept, 1e4).amin(1)
        return self.score(torch.cat([mean, low, image * text], dim=-1)).squeeze(-1)


class SmallTeacher:
    """The `tiny` profile's teacher: `CrossHead` on the small encoder's towers."""

    def __init__(self, head: CrossHead, encoder: SmallEncoder) -> None:
        self.head = head.eval()
        self.encoder = encoder

    @torch.inference_mode()
    def score(self, images: Pixels, captions: Sequence[str]) -> FloatArray:
        """(P,) float32 in 0..1: similarity of image p and caption p."""
        encoder, step = self.encoder, 128
        scores = []
        for start in range(0, len(captions), step):
            part = images[start : start + step]
            # An image with several captions comes several times in a row; it is looked at once.
            once = {id(image): image for image in part}
            at = {name: row for row, name in enumerate(once)}
            rows = torch.tensor([at[id(image)] for image in part], device=encoder.device)
            grid, image = encoder.towers.image(
                pixel_batch(list(once.values()), encoder.side_px).to(encoder.device)
            )
            tokens, mask = (
                t.to(encoder.device)
                for t in token_batch(
                    encoder.tokenizer, captions[start : start + step], encoder.limit
                )
            )
            states, text = encoder.towers.text(tokens, mask)
            scores.append(
                torch.sigmoid(self.head(grid[rows], image[rows], states, mask, text)).cpu().numpy()
            )
        return np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32)
