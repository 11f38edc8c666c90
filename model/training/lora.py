"""LoRA: low-rank adapters on the language half, and their merge into its weights.

Hu et al. 2021, arXiv 2106.09685; by the package `peft`, an extra of this project.
"""

from typing import Any

from torch import nn

from schemas.errors import RefuseToStartError

# The linear layers of a Qwen2 layer.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapters(module: nn.Module, rank: int, alpha: int) -> None:
    """Put adapters beside the linear layers, in place; they change nothing before they learn.

    `RefuseToStartError` where `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RefuseToStartError(
            "compute.lora_rank needs the package peft, which is not installed; install the extra"
            " with: pip install 'sigma-stream[lora]', or set compute.lora_rank to 0"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), lora_dropout=0.0)
    inject_adapter_in_model(config, module)


def merge_adapters(module: nn.Module) -> None:
    """Add what the adapters have learnt to the weights beside them, and remove the adapters."""
    for name, child in list(module.named_modules()):
        base: Any = getattr(child, "base_layer", None)
        if base is None:
            continue
        adapted: Any = child
        adapted.merge()
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, adapted.get_base_layer())
    # Else the next stage's adapters would be taken for further ones.
    del module.peft_config
