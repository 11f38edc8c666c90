"""Weights in files: each shared tensor once, and nothing loaded that does not fit exactly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import RefuseToStartError

# Tensors that an error message names; the first ones are enough to recognise the mistake.
_NAMED_MISFITS = 3


def deduplicated_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state on the CPU, with each shared tensor once, under its first name.

    The tied output layer of the backbone shares its weight with the input embedding, and
    safetensors refuses to write one tensor under two names.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    # `keep_vars`: without it each name has a new tensor object, and sharing does not show.
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            state[name] = value.detach().cpu().contiguous()
    return state


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy a state made by `deduplicated_state` into a module.

    `RefuseToStartError`, naming the `source`, when names or shapes do not fit the module exactly.
    """
    expected = deduplicated_state(module)
    misfits = sorted(expected.keys() ^ tensors.keys())
    for name in expected.keys() & tensors.keys():
        if expected[name].shape != tensors[name].shape:
            misfits.append(name)
    if misfits:
        named = ", ".join(misfits[:_NAMED_MISFITS])
        raise RefuseToStartError(
            f"the weights in {source} do not fit this configuration at {named}; "
            "restore the file or train again"
        )
    targets = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            targets[name].copy_(value)


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's deduplicated state."""
    save_file(deduplicated_state(module), path)


def load_module(module: nn.Module, path: Path) -> None:
    """Read what `save_module` wrote; `RefuseToStartError` when it is damaged or does not fit."""
    load_exactly(module, read_tensors(path), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; `RefuseToStartError` when it is missing or damaged."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises an exception type of its own for damage
        raise RefuseToStartError(
            f"weights {path} cannot be read ({error}); restore the file or train again"
        ) from error
