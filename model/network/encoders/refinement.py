"""What a corpus with captions teaches an encoder whose towers stay as they are: one linear map
from a classifier's features, one beside the texts' vectors, so that images and captions that belong
together come to lie together (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748).

Measured beside a ridge regression in docs/experiments/encoder-refinement.md.

Letters in shapes: N images, B texts, F width of the features, D width of the vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.records import IntArray

# Each image is seen this often, but for corpora whose steps would pass the bound.
_EPOCHS = 60
_MOST_STEPS = 5000

# Images of a step: each has the captions of the others as its wrong answers.
_BATCH = 256

_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.1

# Share of the features that a step hides: a small corpus would be learnt by heart.
_DROPOUT = 0.3

# What turns a cosine into a logit while the maps are fitted.
_SCALE = 20.0

# Captions alike are no wrong answers for each other's image.
_SAME_CAPTION = 0.99

# A feature that never changes is not divided by nothing.
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True)
class Refinement:
    """Both maps; what they give is a second opinion, which is added to the first.

    `mean` and `deviation` are (F,), `image` (F, D), `image_bias` (D,), `text` (D, D).
    """

    mean: Tensor
    deviation: Tensor
    image: Tensor
    image_bias: Tensor
    text: Tensor

    def images(self, features: Tensor, first: Tensor) -> Tensor:
        """(N, D): what the map makes of (N, F) features, and the unit vectors `first` (N, D)."""
        learnt = ((features - self.mean) / self.deviation) @ self.image + self.image_bias
        return first + F.normalize(learnt, dim=-1)

    def texts(self, vectors: Tensor) -> Tensor:
        """(B, D) of unit vectors (B, D)."""
        return vectors + F.normalize(vectors + vectors @ self.text, dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """By name, to be stored."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "image": self.image,
            "image_bias": self.image_bias,
            "text": self.text,
        }


def refine(features: Tensor, captions: Sequence[Tensor], seed: int) -> Refinement:
    """Fit both maps to (N, F) features and the unit vectors (captions of the image, D) of each."""
    device = features.device
    mean = features.mean(0)
    deviation = features.std(0).clamp(min=_LEAST_DEVIATION)
    inputs = (features - mean) / deviation
    width = captions[0].shape[1]
    # Dropout and initial weights are drawn from the global generator, which others use too.
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        image = torch.nn.Linear(features.shape[1], width, device=device)
        text = torch.nn.Linear(width, width, bias=False, device=device)
        # Texts begin as they are.
        torch.nn.init.zeros_(text.weight)
        _fit(image, text, inputs, captions, np.random.default_rng(seed))
    return Refinement(
        mean,
        deviation,
        image.weight.detach().T.contiguous(),
        image.bias.detach(),
        text.weight.detach().T.contiguous(),
    )


def _fit(
    image: torch.nn.Linear,
    text: torch.nn.Linear,
    inputs: Tensor,
    captions: Sequence[Tensor],
    rng: np.random.Generator,
) -> None:
    size = min(_BATCH, len(captions))
    steps = min(_MOST_STEPS, _EPOCHS * (len(captions) // size))
    optimizer = torch.optim.AdamW(
        [*image.parameters(), *text.parameters()], lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, steps)
    order = rng.permutation(len(captions))
    start = 0
    for _ in range(steps):
        if start + size > len(order):
            order = rng.permutation(len(captions))
            start = 0
        rows = order[start : start + size]
        start += size
        loss = _loss(image, text, inputs[torch.from_numpy(rows)], _drawn(captions, rows, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _drawn(captions: Sequence[Tensor], rows: IntArray, rng: np.random.Generator) -> Tensor:
    """(rows, D): one caption of each image."""
    return torch.stack([captions[row][rng.integers(len(captions[row]))] for row in rows])


def _loss(
    image: torch.nn.Linear, text: torch.nn.Linear, inputs: Tensor, captions: Tensor
) -> Tensor:
    """InfoNCE in both directions, of a batch (size, F) and its captions (size, D)."""
    learnt = F.normalize(image(F.dropout(inputs, _DROPOUT)), dim=-1)
    asked = F.normalize(captions + text(captions), dim=-1)
    logits = _SCALE * learnt @ asked.T
    same = (captions @ captions.T > _SAME_CAPTION).float()
    target = same / same.sum(1, keepdim=True)
    forwards = -(target * logits.log_softmax(-1)).sum(-1).mean()
    backwards = -(target * logits.T.log_softmax(-1)).sum(-1).mean()
    return (forwards + backwards) / 2
