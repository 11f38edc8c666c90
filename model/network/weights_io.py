"""Weights in files: each shared tensor once, and nothing loaded that does not fit exactly."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import RefuseToStartError


def deduplicated_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with each shared tensor once (the tied output layer of the backbone is its input embedding)."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            kept[name] = value.detach().cpu().contiguous()
    return kept


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Put a state made by `stored` back; `RefuseToStartError` when it does not fit the module exactly."""
    wanted = deduplicated_state(module)
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [
        name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape
    ]
    if wrong:
        found = ", ".join(wrong[:3])
        raise RefuseToStartError(
            f"the weights in {source} do not fit this configuration at {found}; restore the file or train again"
        )
    targets = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            targets[name].copy_(value)


def save_module(module: nn.Module, path: Path) -> None:
    """Write `deduplicated_state(module)`."""
    save_file(deduplicated_state(module), path)


def load_module(module: nn.Module, path: Path) -> None:
    """Read what `save_module` wrote."""
    load_exactly(module, read_tensors(path), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file; one clear error when it is missing or damaged."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises a bare exception type of its own
        raise RefuseToStartError(
            f"weights {path} cannot be read ({error}); restore the file or train again"
        ) from error
