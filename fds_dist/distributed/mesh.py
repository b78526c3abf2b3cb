"""The process group and the device mesh `replica × tangent × data`, and what crosses it.

- tangent: each rank owns some tangents and replays the same primal run. Nothing crosses the network per step; K
  numbers are gathered per outer step.
- replica, data: axes of size 1 for now; the config refuses other sizes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.faults import Fault

AXES = ("replica", "tangent", "data")
TIMEOUT = timedelta(minutes=10)
"""After this long without an answer from another rank a run ends with an error instead of waiting for ever."""


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the axes; their product is the world size."""

    replica: int
    tangent: int
    data: int


def mesh_shape(tangent: int | str, data: int, replica: int, world_size: int) -> tuple[MeshShape | None, list[Fault]]:
    """The mesh for `world_size` ranks, or faults if none fits; `tangent="auto"` takes what the other axes leave."""
    faults = [
        Fault(f"mesh.{name}", f"{size} is not available yet", "1")
        for name, size in (("data", data), ("replica", replica))
        if size != 1
    ]
    others = data * replica
    if tangent == "auto":
        if world_size % others:
            faults.append(
                Fault("mesh", f"data {data} × replica {replica} do not divide the world size {world_size}", "a divisor")
            )
        tangent = max(1, world_size // others)
    elif int(tangent) * others != world_size:
        product = f"replica {replica} × tangent {tangent} × data {data} = {replica * int(tangent) * data}"
        fit = f"; tangent=auto or {world_size // others}" if world_size % others == 0 else ""
        faults.append(Fault("mesh", f"{product} does not fit {world_size} rank(s)", f"a product of {world_size}{fit}"))
    return (None, faults) if faults else (MeshShape(replica, int(tangent), data), [])


def choose_device(requested: str, environment: LaunchEnvironment) -> tuple[torch.device, list[Fault]]:
    """The device of this rank: `cpu`, `cuda`, or `auto` (a GPU of its own if there is one for each local rank)."""
    gpus = torch.cuda.device_count() if requested != "cpu" else 0
    if gpus > environment.local_rank and gpus >= environment.local_world_size:
        return torch.device("cuda", environment.local_rank), []
    if requested == "cuda":
        need = environment.local_world_size
        return torch.device("cpu"), [
            Fault("device", f"cuda: {gpus} GPU(s) for {need} rank(s) here", "cpu, or fewer ranks")
        ]
    return torch.device("cpu"), []


def use_reproducible_threads(device: torch.device) -> None:
    """One thread per rank on a CPU, unless `OMP_NUM_THREADS` says otherwise.

    A sum over several threads depends on their number, so that one rank with many threads and many ranks with one
    would differ in their last bits.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


class Ranks:
    """All ranks of a run. Works the same in a single process, where nothing is communicated.

    Use as a context manager: it joins the process group and leaves it.
    """

    def __init__(self, environment: LaunchEnvironment, shape: MeshShape, device: torch.device) -> None:
        self.environment, self.shape, self.device = environment, shape, device
        self.mesh: DeviceMesh | None = None

    def __enter__(self) -> Ranks:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.environment.distributed:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend,
                rank=self.environment.rank,
                world_size=self.environment.world_size,
                timeout=TIMEOUT,
                device_id=self.device if self.device.type == "cuda" else None,
            )
            sizes = (self.shape.replica, self.shape.tangent, self.shape.data)
            self.mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=AXES)
        return self

    def __exit__(self, *_: object) -> None:
        if self.mesh is not None:
            dist.destroy_process_group()
            self.mesh = None

    @property
    def rank(self) -> int:
        """This process among all."""
        return self.environment.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.environment.world_size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and the console."""
        return self.rank == 0

    @property
    def tangent_rank(self) -> int:
        """This process's place on the `tangent` axis."""
        return 0 if self.mesh is None else self.mesh.get_local_rank("tangent")

    def gather_tangent_axis(self, values: Tensor) -> list[Tensor]:
        """`values` (the same shape everywhere) of each rank on the `tangent` axis, in rank order."""
        if self.mesh is None:
            return [values]
        parts = [torch.empty_like(values) for _ in range(self.shape.tangent)]
        dist.all_gather(parts, values.contiguous(), group=self.mesh.get_group("tangent"))
        return parts

    def gather_elements(self, local: Sequence[float], owned: Sequence[Sequence[int]]) -> list[float]:
        """The K numbers of which this rank holds `local`, those at `owned[tangent_rank]`; float64, exact.

        They are placed, not summed: the result has the same bits for any number of ranks.
        """
        width = max(1, *(len(indices) for indices in owned))
        padded = torch.zeros(width, dtype=torch.float64, device=self.device)
        padded[: len(local)] = torch.tensor(local, dtype=torch.float64, device=self.device)
        result = [0.0] * sum(len(indices) for indices in owned)
        for indices, part in zip(owned, self.gather_tangent_axis(padded), strict=True):
            for index, value in zip(indices, part.tolist(), strict=False):  # the padding is left over
                result[index] = value
        return result

    def broadcast_tangent_axis(self, tensor: Tensor) -> None:
        """Overwrites `tensor` with the one of the axis's first rank."""
        if self.mesh is not None:
            dist.broadcast(tensor, group=self.mesh.get_group("tangent"), group_src=0)

    def broadcast_object(self, value: object) -> object:
        """Rank 0's `value` on all ranks; for small, rare things."""
        if self.mesh is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]
