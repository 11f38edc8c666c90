"""Number formats: what a model is trained and run in.

Trained weights are float32 masters; products run in bfloat16 beside them (autocast). A model that
only answers holds its backbone in bfloat16; its heads, which are small, stay float32.
"""

import torch

from model.network.compute import Compute
from schemas.errors import RefuseToStartError


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def number_format(compute: Compute, device: torch.device) -> torch.dtype:
    """The format that `Compute.dtype` means on a device."""
    if compute.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.bfloat16 if compute.dtype == "bfloat16" else torch.float32


def autocast(compute: Compute, device: torch.device) -> torch.autocast:
    """A context in which the products of float32 weights run in the number format.

    Without autocast's cache: each weight is used once in a pass, and a copy of every one would be
    held until its end, half as much again as the weights themselves.
    """
    dtype = number_format(compute, device)
    enabled = dtype != torch.float32
    return torch.autocast(
        device.type, dtype if enabled else torch.bfloat16, enabled=enabled, cache_enabled=False
    )


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which products run in the format of their operands, whatever is around it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=False)


def require_attention(compute: Compute) -> str:
    """The name of the attention; `RefuseToStartError` when it is not installed."""
    if compute.attention == "flash_attention_2" and not _has_flash_attention():
        raise RefuseToStartError(
            "attention flash_attention_2 needs the package flash-attn and a GPU, and one of them is"
            " missing here; set compute.attention to sdpa, or install flash-attn"
        )
    return compute.attention


def _has_flash_attention() -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())
