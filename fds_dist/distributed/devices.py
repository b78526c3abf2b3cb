"""The device of this rank, and how its arithmetic is made to give the same bits on every rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fds_dist.common.faults import Fault
from fds_dist.common.words import counted
from fds_dist.distributed.environment import LaunchEnvironment


def choose_device(requested: str, environment: LaunchEnvironment) -> tuple[torch.device, list[Fault]]:
    """The device of this rank for `cpu`, `cuda` or `auto` (a GPU if each local rank can have its own)."""
    gpus = torch.cuda.device_count() if requested != "cpu" else 0
    if gpus > environment.local_rank and gpus >= environment.local_world_size:
        return torch.device("cuda", environment.local_rank), []
    if requested == "cuda":
        if not gpus:
            return torch.device("cpu"), [Fault("device", "cuda: PyTorch finds no GPU here", "auto or cpu")]
        problem = f"cuda: {environment.local_world_size} ranks for {counted(gpus, 'GPU')} here"
        return torch.device("cpu"), [Fault("device", problem, "one GPU per rank, or cpu")]
    return torch.device("cpu"), []


@contextmanager
def reproducible_threads(device: torch.device) -> Iterator[None]:
    """Inside, each rank on a CPU uses one thread, unless `OMP_NUM_THREADS` is set.

    A sum over several threads depends on their number: one rank with many threads and many ranks with one thread
    would differ in the last bits.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
