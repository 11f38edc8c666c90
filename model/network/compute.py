"""How a model is computed: number formats, and what makes a large one fit into memory.

No PyTorch here: the command line checks a profile before it loads any.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from schemas.errors import UsageError

# `auto` is bfloat16 on a GPU and float32 on a CPU.
NumberFormat = Literal["auto", "float32", "bfloat16"]

# Implementations of attention in `transformers`; the last one is a package of its own.
Attention = Literal["sdpa", "eager", "flash_attention_2"]


@dataclass(frozen=True, slots=True)
class Compute:
    """How a profile's model is trained and run. `UsageError` for what there is not.

    Trained weights are float32 in every case: at the paper's learning rates most steps are smaller
    than what bfloat16 can tell apart, and would change nothing.
    """

    dtype: NumberFormat = "float32"
    """Of matrix products in training, and of the weights of a model that only answers."""
    attention: Attention = "sdpa"
    micro_batch: int = 0
    """Sequences that a process runs at once; gradients of a batch are summed. 0: all of its batch.
    """
    checkpointing: bool = False
    """Whether activations inside a layer are computed again instead of kept."""
    frozen_vision: bool = False
    """Whether the vision tower stays as it was pretrained."""
    lora_rank: int = 0
    """Rank of adapters on the language half, which are merged when a stage is done; identifier
    tokens and heads are trained fully beside them. 0 trains every weight."""
    lora_alpha: int = 32
    """Adapters are scaled by this over their rank."""
    sharded: bool = False
    """Whether several processes divide weights, gradients and optimizer state among them (FSDP)."""
    loader_workers: int = 0
    """Processes beside each one that trains, which read and prepare its pictures."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("dtype", self.dtype, get_args(NumberFormat)),
            ("attention", self.attention, get_args(Attention)),
        ):
            if value not in allowed:
                raise UsageError(f"compute.{name} must be one of {', '.join(allowed)}, got {value}")
        for name in ("micro_batch", "lora_rank", "loader_workers"):
            if getattr(self, name) < 0:
                raise UsageError(f"compute.{name} must be 0 or more, got {getattr(self, name)}")
        if self.lora_alpha <= 0:
            raise UsageError(f"compute.lora_alpha must be above 0, got {self.lora_alpha}")
