"""Parking: an encoder that waits in the main memory while a stage needs the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from model.network.encoder import Encoder

# An encoder has towers, and those a reader, which has the model.
_DEPTH = 2


@contextmanager
def parked(encoder: Encoder) -> Iterator[None]:
    """Move an encoder's model off its GPU, and back at the end. On a CPU it stays where it is.

    That of the paper takes 7 GB, for which the first of several GPUs has no room beside a stage.
    """
    there = [(model, device_of(model)) for model in models_of(encoder)]
    away = [(model, device) for model, device in there if device.type != "cpu"]
    for model, _ in away:
        model.to("cpu")
    try:
        yield
    finally:
        for model, device in away:
            model.to(device)


def models_of(owner: object, depth: int = _DEPTH) -> list[nn.Module]:
    """The models among the attributes of an encoder, and of what it holds itself."""
    found: list[nn.Module] = []
    for value in getattr(owner, "__dict__", {}).values():
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth and not isinstance(value, type):
            found += models_of(value, depth - 1)
    return found


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU for one without any."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device
