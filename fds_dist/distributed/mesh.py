"""The mesh `replica × tangent × data` of a run's ranks, and the communication along its axes.

- replica: independent inner runs. K numbers are gathered per outer step.
- tangent: each rank owns some tangents and replays the same primal run. Nothing crosses the network in a step; K
  numbers are gathered per outer step.
- data: each rank takes a part of every batch and keeps a part of the state; see `DataAxis`.
"""

from __future__ import annotations

import copy
import gc
import math
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import WriteFailed, lost_file
from fds_dist.common.words import counted
from fds_dist.distributed import exchanges, last_words
from fds_dist.distributed.company import company
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.devices import reproducible_threads
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.errors import ending, rank_errors
from fds_dist.distributed.exchanges import as_numbers
from fds_dist.distributed.groups import Groups, let_go_of_world
from fds_dist.distributed.store import hosts_store, shared_store

Value = TypeVar("Value")
AXES = ("replica", "tangent", "data")


@dataclass(frozen=True)
class MeshShape:
    """The sizes of the axes. Their product is the world size."""

    replica: int
    tangent: int
    data: int


def mesh_shape(tangent: int | str, data: int, replica: int, world_size: int) -> tuple[MeshShape | None, list[Fault]]:
    """The mesh for `world_size` ranks, or faults if none fits. `tangent="auto"` takes what the other axes leave."""
    others = data * replica
    ranks = counted(world_size, "rank")
    if tangent == "auto":
        if world_size % others:
            axes = " × ".join(f"{name} {size}" for name, size in (("replica", replica), ("data", data)) if size > 1)
            return None, [Fault("mesh", f"{axes} does not divide {ranks}", f"a launch with a multiple of {others}")]
        return MeshShape(replica, world_size // others, data), []
    if int(tangent) * others != world_size:
        product = f"replica {replica} × tangent {tangent} × data {data}" if others > 1 else f"{tangent}"
        fitting = f"auto or {world_size // others}" if world_size % others == 0 else "auto"
        expected = f"{fitting}, or a launch with {int(tangent) * others} ranks"
        return None, [Fault("mesh.tangent", f"{product} does not fit {ranks}", expected)]
    return MeshShape(replica, int(tangent), data), []


class Ranks:
    """All ranks of a run. In a single process it works the same, without communication.

    Use it as a context manager, which joins the process group and leaves it. A process group that the caller has made
    stays unchanged; the run makes further groups for itself.
    """

    def __init__(
        self, environment: LaunchEnvironment, shape: MeshShape, device: torch.device, whole_batch_norm: bool = True
    ) -> None:
        self.environment, self.shape, self.device = environment, shape, device
        self.group: dist.ProcessGroup | None = None
        """The group of all ranks; None outside the context, and for a single rank."""
        self.data = DataAxis()
        self._axis_groups: dict[str, dist.ProcessGroup | None] = {}
        self._replica_group: dist.ProcessGroup | None = None
        self._whole_batch_norm = whole_batch_norm
        self.waited = 0.0
        """Seconds spent waiting for other ranks in comparisons and gathers, without the sums of the data axis."""

    def __enter__(self) -> Ranks:
        with ExitStack() as stack:
            stack.enter_context(reproducible_threads(self.device))
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            if self.environment.distributed or dist.is_initialized():  # by the caller, for one rank alone
                let_go_of_world()
            if self.environment.distributed:
                stack.enter_context(company(self.environment))
                self._join(stack)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """After an error the other ranks hear of it before they lose this one."""
        words = "" if error is None else ending(error)
        if words:
            last_words.say(self.rank, words)
        exchanges.let_go()
        self._leave.close()
        self.group, self.data, self._axis_groups, self._replica_group = None, DataAxis(), {}, None
        if self.environment.distributed:
            # The threads of a group end with its last holder, say a DDP module in a cycle. Those that outlive the
            # interpreter may abort the process.
            gc.collect()
        last_words.leave(lingers=bool(words) and hosts_store(self.environment))

    def _join(self, stack: ExitStack) -> None:
        with rank_errors():
            last_words.use(last_words.Board(shared_store(self.environment), self.rank, self.world_size))
        groups = Groups(self.environment, self.device, stack)
        with rank_errors():
            self.group = groups.world()
        with rank_errors():
            self._axis_groups = {axis: self._axis_group(groups, axis) for axis in AXES}
            size = self.shape.tangent * self.shape.data
            lines = [list(range(first, first + size)) for first in range(0, self.world_size, size)]
            self._replica_group = groups.among(lines, self.group)
        data = self._axis_groups["data"]
        reference = weakref.ref(data) if data is not None else lambda: None
        place, size, on_gpu = self._place("data"), self.shape.data, self.device.type == "cuda"
        self.data = DataAxis(place, size, reference, self._whole_batch_norm, exchanges=on_gpu)

    def _axis_group(self, groups: Groups, axis: str) -> dist.ProcessGroup | None:
        """The group of the ranks that differ from this rank only in their place on `axis`; None if there are none."""
        grid = torch.arange(self.world_size).view([getattr(self.shape, name) for name in AXES])
        lines = grid.movedim(AXES.index(axis), -1).reshape(-1, getattr(self.shape, axis)).tolist()
        return groups.among(lines, self.group)

    def one_replica(self) -> Ranks:
        """The ranks of this process's inner run as all ranks of a run, for as long as this context lasts."""
        if self.shape.replica == 1:
            return self
        ranks, size = copy.copy(self), self.shape.tangent * self.shape.data
        ranks.environment = replace(self.environment, rank=self.rank % size, world_size=size)
        ranks.shape, ranks.group = replace(self.shape, replica=1), self._replica_group
        return ranks

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.environment.rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.environment.world_size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the only rank that writes files and prints."""
        return self.rank == 0

    @property
    def tangent_rank(self) -> int:
        """This process's place on the `tangent` axis."""
        return self._place("tangent")

    @property
    def replica(self) -> int:
        """This process's place on the `replica` axis: the number of its independent inner run."""
        return self._place("replica")

    def _place(self, axis: str) -> int:
        if self.group is None:
            return 0
        inner = math.prod(getattr(self.shape, name) for name in AXES[AXES.index(axis) + 1 :])
        return self.rank // inner % getattr(self.shape, axis)

    def on_tangent_axis(self, place: int) -> int:
        """The rank at `place` of this process's `tangent` axis."""
        return (self.replica * self.shape.tangent + place) * self.shape.data + self._place("data")

    def gather_axis(self, axis: str, values: Tensor) -> list[Tensor]:
        """The `values` of each rank along one axis of the mesh, in order, on the CPU: few numbers, of the same shape on
        all ranks."""
        values = values.cpu().contiguous()  # which ends this rank's pending computation: that is no waiting time
        group = self._axis_groups.get(axis)
        if group is None:
            return [values]
        parts = [torch.empty_like(values) for _ in range(getattr(self.shape, axis))]
        began = time.perf_counter()
        with rank_errors():
            dist.all_gather(parts, values, group=group)
        self.waited += time.perf_counter() - began
        return parts

    def gather_numbers(self, axis: str, numbers: Sequence[float]) -> list[list[float]]:
        """The `numbers` of each rank along `axis`, in order, exactly (float64). Each rank passes equally many."""
        local = torch.tensor(numbers, dtype=torch.float64)
        return [part.tolist() for part in self.gather_axis(axis, local)]

    def gather_elements(self, local: Sequence[float], owned: Sequence[Sequence[int]]) -> list[float]:
        """Gathers K numbers, of which each rank of the `tangent` axis has those at the positions `owned[tangent_rank]`.

        Each rank of the `data` axis passes one summand of each number, `local`. The summands are added in rank order:
        the result has the same bits for any number of `tangent` ranks.
        """
        width = max(1, *(len(indices) for indices in owned))
        parts = self.gather_numbers("data", [*local, *[0.0] * (width - len(local))])
        sums = [sum(column[1:], start=column[0]) for column in zip(*parts, strict=True)]
        result = [0.0] * sum(len(indices) for indices in owned)
        for indices, numbers in zip(owned, self.gather_numbers("tangent", sums), strict=True):
            for index, value in zip(indices, numbers, strict=False):  # without the padding
                result[index] = value
        return result

    def broadcast_tangent_axis(self, tensor: Tensor) -> None:
        """Overwrites `tensor` with that of the axis's first rank."""
        group = self._axis_groups.get("tangent")
        if group is None:
            return
        sent = tensor.contiguous()
        with rank_errors():
            dist.broadcast(as_numbers(sent), group=group, group_src=0)
        if sent is not tensor:
            tensor.copy_(sent)

    def broadcast_object(self, value: Value) -> Value:
        """Rank 0's `value` on all ranks. For small values and rare calls."""
        if self.group is None:
            return value
        box = [value]
        with rank_errors():
            dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def gather_objects(self, value: Value) -> list[Value]:
        """Each rank's `value`, in rank order, on all ranks. For small values and rare calls."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        with rank_errors():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, make: Callable[[], Value]) -> Value:
        """The result of `make()` on rank 0, on every rank. A `UserError` or `WriteFailed` of rank 0 is raised on every
        rank."""
        value, error = self.broadcast_object(_outcome(make) if self.is_first else (None, None))
        if error is not None:
            raise error
        return cast(Value, value)

    def on_each(self, make: Callable[[], Value]) -> Value:
        """The result of `make()` on this rank. A `UserError` or `WriteFailed` of any rank is raised on every rank."""
        value, error = _outcome(make)
        if error := next(filter(None, self.gather_objects(error)), None):
            raise error
        return cast(Value, value)


def _outcome(make: Callable[[], Value]) -> tuple[Value | None, UserError | WriteFailed | None]:
    """What `make()` returns, or what it raises that all ranks should hear."""
    try:
        return make(), None
    except (UserError, WriteFailed) as error:
        return None, error
    except OSError as error:
        if lost := lost_file(error):
            return None, lost
        raise
