"""The trainee: a model made ready for a stage, and as it was again when the stage is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from model.network.precision import require_attention
from model.network.sigma import SigmaModel
from model.training.lora import add_adapters, merge_adapters


@contextmanager
def as_trainee(sigma: SigmaModel, seed: int) -> Iterator[None]:
    """Prepare a model as its profile's `compute` says, in place; undone at the end.

    Adapters are merged into the weights then. `RefuseToStartError` for what is not installed.
    """
    compute = sigma.profile.compute
    backbone = sigma.backbone
    backbone.set_attn_implementation(require_attention(compute))
    if compute.lora_rank:
        backbone.model.language_model.requires_grad_(False)
        torch.manual_seed(seed)
        add_adapters(backbone.model.language_model, compute.lora_rank, compute.lora_alpha)
        handles = _learn_identifiers_only(sigma)
    if compute.frozen_vision:
        backbone.model.visual.requires_grad_(False)
    if compute.checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if compute.checkpointing:
            backbone.gradient_checkpointing_disable()
        if compute.lora_rank:
            for handle in handles:
                handle.remove()
            merge_adapters(backbone.model.language_model)
        sigma.requires_grad_(True)


def own_rows(sigma: SigmaModel) -> list[int]:
    """Rows of the embedding table that this project added: identifier tokens, and their marks."""
    prompts = sigma.prompts
    marks = [prompts.identifier_mark, prompts.caption_mark]
    joint = chain.from_iterable(chain.from_iterable(prompts.joint))
    return sorted({*marks, *chain.from_iterable(sigma.levels), *joint})


def word_tables(sigma: SigmaModel) -> list[Parameter]:
    """The embedding table, and that of the output layer where it is another one."""
    embedding: Any = sigma.backbone.get_input_embeddings()
    output: Parameter = sigma.backbone.lm_head.weight
    table: Parameter = embedding.weight
    return [table] if output is table else [table, output]


def _learn_identifiers_only(sigma: SigmaModel) -> list[RemovableHandle]:
    """Train of the word tables this project's own rows only.

    The others keep a gradient of zero; they must have no weight decay either.
    """
    handles: list[RemovableHandle] = []
    for table in word_tables(sigma):
        mask = torch.zeros(len(table), 1, device=table.device)
        mask[own_rows(sigma)] = 1.0

        def masked(gradient: Tensor, mask: Tensor = mask) -> Tensor:
            return gradient * mask.to(gradient)

        handles.append(table.requires_grad_(True).register_hook(masked))
    return handles
