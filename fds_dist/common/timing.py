"""How long a call takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call of `run`, the work that it leaves to a GPU included."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median over `repeats` calls, after one that warms up."""
    seconds_of(run, device)
    return statistics.median(seconds_of(run, device) for _ in range(repeats))
