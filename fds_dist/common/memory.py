"""How much memory a computation needs at its peak, and how much is free."""

from __future__ import annotations

import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _LiveBytes(TorchDispatchMode):
    """Follows the storages of all results inside, from the operation that makes them until nobody holds them.

    Args:
        shapes: whether tensors that have a shape and no memory count as if they had some.
    """

    def __init__(self, shapes: bool = False) -> None:
        super().__init__()
        self._shapes = shapes
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), counts=False)  # what is not known yet was there before
        result = func(*args, **(kwargs or {}))
        self._see((result,), counts=True)
        return result

    def _see(self, values: Iterable[object], counts: bool) -> None:
        """Of arguments or results of an operation; `tree_leaves` would take as long as the operation."""
        for value in values:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._alive:
                    has_memory = self._shapes or storage.device.type != "meta"  # as in a trace
                    self._add(storage, counts and has_memory)
            elif isinstance(value, tuple | list):
                self._see(value, counts)
            elif isinstance(value, dict):
                self._see(value.values(), counts)

    def _add(self, storage: torch.UntypedStorage, counts: bool) -> None:
        key, size = storage._cdata, storage.nbytes() if counts else 0

        def gone(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def free_bytes(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process may still take: of a GPU what is free, elsewhere its part of this host's free memory.

    Args:
        processes: processes on this host, which share its memory equally.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_free_on_host(), *_free_in_control_groups()]) // processes


def _free_on_host() -> int:
    """What Linux can give without swapping; on other systems the whole memory, because they do not say."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_GROUPS = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Linux's control groups, version 2 and 1: their place, the limit, what is in use, and the part of it that is cache."""


def _free_in_control_groups() -> Iterator[int]:
    """What each limit of a batch system or a container leaves, from this process's group up to the root."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(_GROUPS):
            root, limit, used, cache = _GROUPS[controller]
            folder = Path(root) / path.lstrip("/")
            while folder.is_relative_to(root):
                with suppress(OSError, ValueError, KeyError):  # no such file, or no limit: "max"
                    room = int((folder / limit).read_text()) - int((folder / used).read_text())
                    fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield max(room + int(fields[cache]), 0)
                folder = folder.parent


def own_peak_bytes(device: torch.device) -> int:
    """Bytes that this process has held at its peak so far: of tensors on a GPU, elsewhere of all its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_bytes(run: Callable[[], object], device: torch.device, shapes: bool = False) -> int:
    """Bytes that `run` holds at its peak beyond what was there before; its result is not kept.

    On a GPU by its allocator, which also sees what libraries ask for. Elsewhere by the sizes of all tensors that
    PyTorch's operations make: what happens within one of them is not seen.

    Args:
        shapes: whether tensors without memory (PyTorch's fake ones) count by their shapes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes(shapes) as live:
        run()
    return live.peak
