"""The process group and the device mesh `replica × tangent × data`, and what crosses it.

- tangent: each rank owns some tangents and replays the same primal run. Nothing crosses the network per step; K
  numbers are gathered per outer step.
- replica, data: axes of size 1 for now; the config refuses other sizes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fds_dist.distributed.agreement import TIMEOUT, meeting_store, with_the_others
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.faults import Fault, UserError

Value = TypeVar("Value")
AXES = ("replica", "tangent", "data")


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
    ranks = _counted(world_size, "rank")
    if faults:
        return None, faults
    if tangent == "auto":
        if world_size % others:
            problem = f"data {data} × replica {replica} does not divide {ranks}"
            return None, [Fault("mesh", problem, f"a divisor of {world_size}")]
        return MeshShape(replica, world_size // others, data), []
    if int(tangent) * others != world_size:
        product = f"replica {replica} × tangent {tangent} × data {data}" if others > 1 else f"{tangent}"
        fitting = f"auto or {world_size // others}" if world_size % others == 0 else "auto"
        expected = f"{fitting}, or a launch with {int(tangent) * others} ranks"
        return None, [Fault("mesh.tangent", f"{product} does not fit {ranks}", expected)]
    return MeshShape(replica, int(tangent), data), []


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def choose_device(requested: str, environment: LaunchEnvironment) -> tuple[torch.device, list[Fault]]:
    """The device of this rank: `cpu`, `cuda`, or `auto` (a GPU of its own if there is one for each local rank)."""
    gpus = torch.cuda.device_count() if requested != "cpu" else 0
    if gpus > environment.local_rank and gpus >= environment.local_world_size:
        return torch.device("cuda", environment.local_rank), []
    if requested == "cuda":
        if not gpus:
            return torch.device("cpu"), [Fault("device", "cuda: PyTorch finds no GPU here", "auto or cpu")]
        problem = f"cuda: {environment.local_world_size} ranks for {_counted(gpus, 'GPU')} here"
        return torch.device("cpu"), [Fault("device", problem, "a GPU for each rank, or cpu")]
    return torch.device("cpu"), []


@contextmanager
def reproducible_threads(device: torch.device) -> Iterator[None]:
    """Inside, one thread per rank on a CPU, unless `OMP_NUM_THREADS` says otherwise.

    A sum over several threads depends on their number, so that one rank with many threads and many ranks with one
    would differ in their last bits.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ranks:
    """All ranks of a run. Works the same in a single process, where nothing is communicated.

    Use as a context manager: it joins the process group and leaves it.
    """

    def __init__(self, environment: LaunchEnvironment, shape: MeshShape, device: torch.device) -> None:
        self.environment, self.shape, self.device = environment, shape, device
        self.mesh: DeviceMesh | None = None

    def __enter__(self) -> Ranks:
        with ExitStack() as stack:
            stack.enter_context(reproducible_threads(self.device))
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            if self.environment.distributed:
                self._join()
                stack.callback(dist.destroy_process_group)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.close()
        self.mesh = None

    def _join(self) -> None:
        on_gpu = self.device.type == "cuda"
        sizes = (self.shape.replica, self.shape.tangent, self.shape.data)
        with with_the_others():
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=meeting_store(self.environment),
                rank=self.environment.rank,
                world_size=self.environment.world_size,
                timeout=TIMEOUT,
                device_id=self.device if on_gpu else None,
            )
            self.mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=AXES)

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
        with with_the_others():
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
        if self.mesh is None:
            return
        with with_the_others():
            dist.broadcast(tensor, group=self.mesh.get_group("tangent"), group_src=0)

    def broadcast_object(self, value: Value) -> Value:
        """Rank 0's `value` on all ranks; for small, rare things."""
        if self.mesh is None:
            return value
        box = [value]
        with with_the_others():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_objects(self, value: Value) -> list[Value]:
        """Each rank's `value`, in rank order, on all ranks; for small, rare things."""
        if self.mesh is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        with with_the_others():
            dist.all_gather_object(values, value)
        return values

    def on_first(self, make: Callable[[], Value]) -> Value:
        """`make()` of rank 0 on every rank; its `UserError` is raised on every rank too."""
        outcome: Any = None, None
        if self.is_first:
            try:
                outcome = make(), None
            except UserError as error:
                outcome = None, error
        value, error = self.broadcast_object(outcome)
        if error is not None:
            raise error
        return value
