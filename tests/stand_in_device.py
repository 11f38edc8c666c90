"""A stand-in for a GPU on the CPU: operations as on another device, and a list of those that wait.

Tensors on it carry the device `meta` and compute on the CPU. What would make a host wait for a GPU
is noted: a value that is read, a result whose size is not known before, a copy to the host, a
blocking copy from it. What mixes both devices fails, as it does on a GPU.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")

# Those of a GPU; the names of PyTorch's operators.
_WAITING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "repeat_interleave.Tensor",
    "_unique2",
    "unique_dim",
)


class StandIn(torch.Tensor):
    """A tensor on the stand-in; its numbers are in `values`, on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "StandIn":
        made: StandIn = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the stand-in's mode")


class StandInMode(TorchDispatchMode):
    """Runs operations on the stand-in, and notes those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
        parts: list[Any] = []
        tree_map(parts.append, given)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        there = any(isinstance(part, StandIn) for part in tensors)
        wanted = given.get("device")
        goes = wanted == DEVICE
        if not there and not goes:
            return func(*args, **(kwargs or {}))
        self.operations += 1
        self._note(str(func).removeprefix("aten."), tensors, given)
        own_args, own_kwargs = tree_map(_on_host, (args, kwargs or {}))
        result = func(*own_args, **own_kwargs)
        return result if wanted is not None and not goes else _on_stand_in(result, args)

    def _note(self, name: str, tensors: list[Tensor], given: dict[str, Any]) -> None:
        there = [isinstance(tensor, StandIn) for tensor in tensors]
        # Numbers that an operation takes along are no tensors of the host to it.
        strangers = [
            not own and tensor.dim() > 0 for own, tensor in zip(there, tensors, strict=True)
        ]
        wanted = given.get("device")
        copies = name.startswith(("_to_copy", "to.", "copy_"))
        if any(strangers) and any(there) and not copies:
            raise AssertionError(f"{name} mixes tensors of the host with those of the device")
        if name.startswith(_WAITING):
            self.waits.append(name)
        masks = [tensor.dtype == torch.bool for tensor in tensors[1:]]
        if name.startswith(("index.", "index_put")) and any(masks):
            self.waits.append(f"{name} by a mask")
        if copies and any(there) and (wanted not in (None, DEVICE) or not there[0]):
            self.waits.append(f"{name} to the host")
        from_host = copies and not all(there) and there[0] == (wanted is None)
        if from_host and not given.get("non_blocking"):
            self.waits.append(f"{name} from the host, blocking")


def _on_host(part: Any) -> Any:
    if isinstance(part, StandIn):
        return part.values
    return torch.device("cpu") if part == DEVICE else part


def _on_stand_in(result: Any, args: Any) -> Any:
    """The results on the device; what was changed in place is the tensor that it was."""
    known = {id(part.values): part for part in args if isinstance(part, StandIn)}

    def wrapped(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        own = known.get(id(part))
        return StandIn(part) if own is None else own

    return tree_map(wrapped, result)


def move_to_stand_in(module: nn.Module) -> None:
    """Move all weights and buffers of a module to the stand-in."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = cast(nn.Parameter, StandIn(weight.data))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = StandIn(buffer)
