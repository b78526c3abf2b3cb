"""How much memory a computation needs at its peak."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytes(TorchDispatchMode):
    """Follows the storages of all results inside, from the operation that makes them until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), counts=False)  # what is not known yet was there before
        result = func(*args, **(kwargs or {}))
        self._see(result, counts=True)
        return result

    def _see(self, values: object, counts: bool) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._alive:
                self._add(leaf.untyped_storage(), counts)

    def _add(self, storage: torch.UntypedStorage, counts: bool) -> None:
        key, size = storage._cdata, storage.nbytes() if counts else 0

        def gone(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def own_peak_bytes(device: torch.device) -> int:
    """Bytes that this process has held at its peak so far: of tensors on a GPU, elsewhere of all its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that `run` holds at its peak beyond what was there before; its result is not kept.

    On a GPU by its allocator, which also sees what libraries ask for. Elsewhere by the sizes of all tensors that
    PyTorch's operations make: what happens within one of them is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as live:
        run()
    return live.peak
