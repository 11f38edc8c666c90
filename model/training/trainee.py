"""The trainee: a model made ready for a stage, and as it was again when the stage is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter

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
        for table in word_tables(sigma):
            table.requires_grad_(True)
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


def keeps_words(sigma: SigmaModel) -> bool:
    """Whether words stay as they are: beside adapters, and where they are those of an encoder."""
    return bool(sigma.profile.compute.lora_rank) or sigma.profile.encoder_words


def drop_word_gradients(sigma: SigmaModel) -> None:
    """Train of the word tables this project's own rows only, where words stay as they are.

    The others get a gradient of zero; they must have no weight decay either.
    """
    for table in word_tables(sigma):
        gradient = table.grad
        if gradient is None:
            continue
        own = torch.zeros(len(table), 1, device=gradient.device)
        own[own_rows(sigma)] = 1.0
        if isinstance(gradient, DTensor):
            # Every rank has all of it: nothing is sent.
            own = distribute_tensor(
                own, gradient.device_mesh, gradient.placements, src_data_rank=None
            )
        gradient.mul_(own)
