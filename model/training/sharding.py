"""Sharding: weights, gradients and optimizer state divided among the ranks of a training.

FSDP2 of PyTorch, through `accelerate`. What is sharded cannot be made whole again in place, so a
copy of the model is trained, and what it has learnt is copied back when a stage is done.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from model.network.compute import Compute
from model.network.precision import number_format
from model.network.sigma import SigmaModel
from model.training.ranks import world_size

# Layers that are gathered one at a time.
LAYERS = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")


def is_sharded(compute: Compute) -> bool:
    """Whether the ranks divide a model among them: one alone has nobody to divide with."""
    return compute.sharded and world_size() > 1


def sharding_arguments(compute: Compute) -> dict[str, Any]:
    """What the Trainer's arguments say of sharding; checkpoints are written by every rank."""
    if not is_sharded(compute):
        return {}
    config = {
        "version": 2,
        "transformer_layer_cls_to_wrap": list(LAYERS),
        "state_dict_type": "SHARDED_STATE_DICT",
        "reshard_after_forward": True,
    }
    return {"fsdp": True, "fsdp_config": config}


def enable_sharding(accelerator: Accelerator, plugin_arguments: Any, sigma: SigmaModel) -> None:
    """Let an accelerator shard, in the number formats of the profile.

    Layers are gathered in the format of their products, and gradients summed in float32.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        # `accelerate` offers it on accelerators only; PyTorch's own runs on CPUs as well.
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
    dtype = number_format(sigma.profile.compute, accelerator.device)
    if dtype != torch.float32:
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


@contextmanager
def trainable_copy(sigma: SigmaModel) -> Iterator[SigmaModel]:
    """The model that a stage trains: itself, or a copy whose weights are copied back at the end.

    Meanwhile the model is in the main memory.
    """
    if not is_sharded(sigma.profile.compute):
        yield sigma
        return
    device = sigma.device
    sigma.to("cpu")
    trainee = copy.deepcopy(sigma)
    trainee.train()
    yield trainee
    # Not after an error: gathering needs every rank, and one of them has failed.
    _gather(trainee, sigma)
    del trainee
    sigma.to(device)


def drop_idle_gradients(sigma: SigmaModel, counts: Tensor) -> None:
    """Drop gradients of parts that no rank needed in a step; `counts` are those of `counts_of`.

    They are zero, and a part with a gradient of zero would still decay and follow its momentum.
    """
    _, labels, queries, images, vectors = counts.tolist()
    needed: list[tuple[nn.Module, float]] = [
        (sigma.backbone.model.visual, images),
        (sigma.head, labels),
    ]
    if sigma.projector is not None:
        needed.append((sigma.projector, vectors))
    if sigma.query_head is not None:
        needed.append((sigma.query_head, queries))
    for part, count in needed:
        if not count:
            part.zero_grad(set_to_none=True)


def begin_states(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the state with which AdamW begins.

    It would have none before its first gradient, and a sharded checkpoint that lacks one cannot be
    read back.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight not in optimizer.state:
                on = weight.device if group.get("fused") else "cpu"
                optimizer.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32, device=on),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }


@torch.no_grad()
def _gather(sharded: SigmaModel, whole: SigmaModel) -> None:
    """Copy the weights of a sharded model into a whole one, on every rank."""
    targets = dict(whole.named_parameters())
    for name, value in sharded.named_parameters():
        targets[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)
