"""Ranks: the processes that `torchrun` starts for one training.

A process that was started alone is the first and only rank.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

T = TypeVar("T")

# How long the other ranks wait while the first alone reads, embeds and clusters.
#
# PyTorch's default ends the run after ten minutes.
_TIMEOUT = timedelta(days=2)


def join_ranks() -> None:
    """Meet the other ranks, if `torchrun` started this process.

    Each takes its own GPU where there are some.
    """
    if not distributed.is_torchelastic_launched() or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(distributed.get_node_local_rank())
        # Gradients are on GPUs, times and announcements on the CPU: each needs its own backend.
        distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=_TIMEOUT)
    else:
        distributed.init_process_group("gloo", timeout=_TIMEOUT)


def leave_ranks() -> None:
    """Part from the other ranks, when the work in common is done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def world_size() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this is the rank that reads and writes what only one process may."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def wait_for_all_ranks() -> None:
    """Return when every rank has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of the tensor over all ranks, of the same shape."""
    if world_size() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def from_first_rank(value: T | None) -> T:
    """The first rank's value, on every rank; the others give None.

    It is pickled, so the ranks must trust each other.
    """
    if world_size() == 1:
        return cast(T, value)
    # Filled in place on every rank but the first.
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def from_all_ranks(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank; pickled likewise."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return cast(list[T], values)


def own_share(values: Sequence[T]) -> list[T]:
    """What this rank takes of a work that all ranks divide: every value is one rank's."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return list(values[rank :: world_size()])
