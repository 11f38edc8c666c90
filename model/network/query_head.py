"""The query head: the decoder's own state of a query as a vector of the encoder's space.

It is taught the vectors of the encoder's text tower in alignment, so that a process which answers
queries needs no encoder: one reading of the prompt gives the vector and what decoding begins with.

Letters in shapes: B texts, N images, H hidden width, D width of the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.precision import full_precision
from model.network.resize import Pixels
from schemas.records import FloatArray

if TYPE_CHECKING:
    from model.network.sigma import SigmaModel

# Width of the hidden layer, as a multiple of the hidden width of the backbone.
_EXPANSION = 2

# Texts that are read at once.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class QuerySpace:
    """The encoder's space, which a head gives vectors of; stored with its checkpoint."""

    width: int
    """D."""
    scale: float
    """What turns a cosine into a logit: `Encoder.scale`."""


class QueryHead(nn.Module):
    """Two-layer perceptron on the state of a prompt's last token. Its weights are float32."""

    def __init__(self, space: QuerySpace, hidden: int) -> None:
        """`hidden` is H."""
        super().__init__()
        self.space = space
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, _EXPANSION * hidden),
            nn.GELU(),
            nn.Linear(_EXPANSION * hidden, space.width),
        )

    def forward(self, states: Tensor) -> Tensor:
        """(B, H) states of any format → (B, D) float32 unit vectors."""
        with full_precision(states.device):
            weight = next(self.parameters())
            return F.normalize(self.mlp(states.to(weight.dtype)).float(), dim=-1)


class QueryHeadEncoder:
    """The text side of an `Encoder`, computed by a generation's own head. It has no image side."""

    def __init__(self, sigma: "SigmaModel", head: QueryHead) -> None:
        """`head` is the model's."""
        self.sigma = sigma
        self.head = head
        self.width: int = head.space.width
        self.scale: float = head.space.scale

    def embed_images(self, images: Pixels) -> FloatArray:
        """Never: whoever needs vectors of images loads the encoder."""
        raise AssertionError("images were to be embedded where no encoder is loaded")

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts; a search takes them from its own reading."""
        vectors = [np.zeros((0, self.width), dtype=np.float32)]
        for start in range(0, len(texts), _BATCH):
            vectors.append(self.of_states(self.sigma.query_states(texts[start : start + _BATCH])))
        return np.concatenate(vectors)

    @torch.inference_mode()
    def of_states(self, states: Tensor) -> FloatArray:
        """(B, D) float32 unit vectors of prompts whose last states (B, H) are known."""
        vectors: FloatArray = self.head(states).cpu().numpy()
        return vectors


def query_head_parameters(hidden: int, width: int) -> int:
    """Parameters of the head of a model, H and D; no memory is taken."""
    with torch.device("meta"):
        head = QueryHead(QuerySpace(width, scale=1.0), hidden)
    return sum(weight.numel() for weight in head.parameters())
