"""Peak memory of what runs in a block: bytes of every tensor that PyTorch makes there."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the storages that live at once, from what is there at the beginning on."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: set[int] = set()
        for tensor in there:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor):
                self._add(value)
        self.peak = max(self.peak, self.now)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return
        self._live.add(storage._cdata)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, place: int, size: int) -> None:
        self._live.discard(place)
        self.now -= size
