"""How many kernels a piece of work starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class _Operations(TorchDispatchMode):
    """Counts PyTorch's operations but for views and allocations: on a GPU each starts a kernel, or a few."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [result.alias_info for result in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not is_view and func.overloadpacket.__name__ not in ALLOCATIONS
        return func(*args, **(kwargs or {}))


def count_kernels(run: Callable[[], object], device: torch.device) -> int:
    """Kernels that `run` starts: on a GPU as the profiler sees them; elsewhere, or where it sees none, operations."""
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize(device)
        names = [event.name for event in seen.events() or () if event.device_type.name == "CUDA"]
        if kernels := [name for name in names if not name.startswith(("Memcpy", "Memset"))]:
            return len(kernels)
    with _Operations() as operations:
        run()
    return operations.count


def kernels_per_step(run_steps: Callable[[int], object], device: torch.device) -> int:
    """The same of one step, `run_steps(n)` being n steps with what comes before and after them."""
    run_steps(2)  # what happens only once
    two, three = (count_kernels(lambda steps=steps: run_steps(steps), device) for steps in (2, 3))
    return three - two
