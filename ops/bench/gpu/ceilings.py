"""What the card itself can do: copies and products, and the least time of a query by them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from model.network.sigma import SigmaModel
from ops.bench.gpu.training import finish
from schemas.identifiers import LEVELS

_COPY_BYTES = 1 << 30
_SIDE = 8192
_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured rates of a card."""

    copy_tb_s: float
    """Bytes read and written by a copy."""
    teraflops: float
    """Of a product of square bfloat16 matrices of random numbers."""


def ceilings(device: torch.device) -> Ceilings:
    """Both rates; takes 3 GiB."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copies = _seconds(lambda: target.copy_(source), device)
    left = torch.randn(_SIDE, _SIDE, device=device).bfloat16()
    right = torch.randn(_SIDE, _SIDE, device=device).bfloat16()
    products = _seconds(lambda: left @ right, device)
    return Ceilings(2 * _COPY_BYTES / copies / 1e12, 2 * _SIDE**3 / products / 1e12)


def least_query_ms(sigma: SigmaModel, found: Ceilings) -> float:
    """Milliseconds in which a card reads the layers' weights three times.

    Once for the prompt and the codes of id1, and for those of id2 and of id3.
    """
    language: Any = sigma.backbone.model.language_model
    layers = sum(weight.numel() * weight.element_size() for weight in language.layers.parameters())
    return layers * (LEVELS - 1) / (found.copy_tb_s * 1e12) * 1e3


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        work()
    finish(device)
    began = time.perf_counter()
    for _ in range(_REPEATS):
        work()
    finish(device)
    return (time.perf_counter() - began) / _REPEATS
