"""The device of this rank: all ranks take the same kind of device, and each GPU serves one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import counted
from fds_dist.distributed.agreement import told_by_all
from fds_dist.distributed.arithmetic import Arithmetic
from fds_dist.distributed.environment import GpuView, LaunchEnvironment


def with_gpus(environment: LaunchEnvironment) -> LaunchEnvironment:
    """The environment with what each rank sees of GPUs, this rank first. All ranks call this alike."""
    views = [GpuView(*view) for view in told_by_all(environment, _view(environment))]
    return replace(environment, gpus=(*views[environment.rank :], *views[: environment.rank]))


def _view(environment: LaunchEnvironment) -> GpuView:
    view = _own_view(environment)
    if not 0 < view.gpus < view.local_world_size:
        return view
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(view.gpus)]
    return view._replace(uuids=uuids)


def _own_view(environment: LaunchEnvironment) -> GpuView:
    return GpuView(environment.local_rank, environment.local_world_size, torch.cuda.device_count())


class Chosen(NamedTuple):
    """The device of this rank, set up."""

    device: torch.device
    remarks: list[str]
    """What a person should know of it."""


def set_up(requested: str, arithmetic: Arithmetic, environment: LaunchEnvironment) -> Chosen:
    """Chooses the device of this rank (`cpu`, `cuda` or `auto`) and sets its arithmetic, before a network runs there.

    Raises:
        UserError: there is no such device for this rank, or its arithmetic cannot be set.
    """
    device, faults = choose_device(requested, environment)
    if faults:
        raise UserError(faults)
    remarks = _remark_on_gpus(requested, device, environment), arithmetic.set(device)
    return Chosen(device, [remark for remark in remarks if remark])


def choose_device(requested: str, environment: LaunchEnvironment) -> tuple[torch.device, list[Fault]]:
    """The device of this rank for `cpu`, `cuda` or `auto` (a GPU if each rank can have its own)."""
    if requested == "cpu":
        return torch.device("cpu"), []
    views = environment.gpus or (_own_view(environment),)
    indices = [_own_gpu(view, views) for view in views]
    if indices[0] is not None and (requested == "cuda" or None not in indices):
        return torch.device("cuda", indices[0]), []
    if requested == "cuda":
        if not views[0].gpus:
            return torch.device("cpu"), [Fault("device", "cuda: PyTorch finds no GPU here", "auto or cpu")]
        problem = f"cuda: {_shortage(views[0])} here"
        return torch.device("cpu"), [Fault("device", problem, "one GPU per rank, or cpu")]
    return torch.device("cpu"), []


def _own_gpu(view: GpuView, views: Sequence[GpuView]) -> int | None:
    """The index of the GPU that the rank with `view` has for itself; None: there is none.

    A launcher may show each rank all GPUs of the host, or others to each (srun --gpus-per-task).
    """
    if view.gpus > view.local_rank and view.gpus >= view.local_world_size:
        return view.local_rank
    shown = [uuid for each in views for uuid in each.uuids]
    return 0 if view.uuids and all(shown.count(uuid) == 1 for uuid in view.uuids) else None


def _shortage(view: GpuView) -> str:
    return f"{counted(view.local_world_size, 'rank')} for {counted(view.gpus, 'GPU')}"


def _remark_on_gpus(requested: str, device: torch.device, environment: LaunchEnvironment) -> str:
    """What a person should know of GPUs that are there and that `auto` does not use; "" where there are none."""
    if requested != "auto" or device.type == "cuda" or not any(view.gpus for view in environment.gpus):
        return ""
    lacking = next(view for view in environment.gpus if _own_gpu(view, environment.gpus) is None)
    return (
        f"ALL GPUs STAY UNUSED and the CPUs compute: not every rank has a GPU of its own ({_shortage(lacking)} on a "
        "host); start one rank per GPU, or say device=cpu"
    )


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
