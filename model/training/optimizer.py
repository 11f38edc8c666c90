"""The optimizer of stage 0: AdamW with a linear warm-up and a cosine decay.

The stages of the paper use the `transformers` Trainer's own instead
(`model.training.stage_trainer`).
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# AdamW's decay rates; 0.98 is usual for contrastive training (CLIP, Radford et al. 2021).
BETAS = (0.9, 0.98)


class CosineAdamW:
    """AdamW over a fixed number of steps, its learning rate scheduled by `cosine_schedule`."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float,
        warmup: float,
        clip: float | None,
    ) -> None:
        """`warmup` is a share of the steps; `clip` bounds the gradient's norm."""
        self._parameters = list(parameters)
        self._clip = clip
        self._optimizer = torch.optim.AdamW(
            self._parameters, learning_rate, BETAS, weight_decay=weight_decay
        )
        self._schedule = cosine_schedule(self._optimizer, steps, warmup)

    def step(self, loss: Tensor) -> None:
        """Change the parameters by one step against the gradient of a scalar loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._schedule.step()


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    warmup_steps = max(1, int(steps * warmup))

    def factor(step: int) -> float:
        if step < warmup_steps:
            # Steps count from 0; the first one must not be lost to a rate of zero.
            return (step + 1) / warmup_steps
        share = np.pi * (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + float(np.cos(share)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
