"""An encoder's model leaves the GPU while a stage is trained, and comes back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from model.network.parking import parked


class Recorded(nn.Module):
    """A model that notes where it is sent; `meta` stands for a GPU."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device))
        self.sent: list[str] = []

    def to(self, *args: Any, **kwargs: Any) -> "Recorded":
        self.sent.append(str(args[0]))
        return self


def test_a_model_on_a_gpu_waits_in_the_main_memory_and_comes_back_after_an_error_too() -> None:
    model = Recorded("meta")
    encoder: Any = SimpleNamespace(towers=SimpleNamespace(reader=SimpleNamespace(own=model)))

    def stage() -> None:
        with parked(encoder):
            assert model.sent == ["cpu"]
            raise ValueError("stage")

    with pytest.raises(ValueError, match="stage"):
        stage()
    assert model.sent == ["cpu", "meta"]


def test_a_model_on_a_cpu_and_an_encoder_without_one_stay() -> None:
    model = Recorded("cpu")
    for encoder in (SimpleNamespace(model=model), SimpleNamespace(model="none")):
        anything: Any = encoder
        with parked(anything):
            pass
    assert model.sent == []
