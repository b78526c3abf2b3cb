"""The process groups of a run: all ranks, the lines of the mesh along each of its axes, and the replicas."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist

from fds_dist.distributed.addresses import name_interface
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.store import shared_store


@dataclass(frozen=True)
class Groups:
    """Makes groups that end with `stack`. All ranks of a run call each method alike.

    A process group that the caller has made stays unchanged; the run makes further groups for itself.
    """

    environment: LaunchEnvironment
    device: torch.device
    stack: ExitStack

    def world(self) -> dist.ProcessGroup | None:
        """The group of all ranks."""
        if self.environment.has_group:
            return self._new(list(range(self.environment.world_size)))
        self._begin()
        self.stack.callback(dist.destroy_process_group)
        return dist.group.WORLD

    def among(self, lines: list[list[int]], world: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
        """The group of the ranks in this rank's line; None where it is alone there.

        Args:
            lines: ranks, as many in each line; each rank of the run is in one of them.
            world: the group of all ranks, which is that of a single line.
        """
        if len(lines[0]) == 1:
            return None
        if len(lines) == 1:
            return world
        groups = [self._new(line) for line in lines]
        return next(group for group in groups if group is not None)

    @property
    def _backend(self) -> str:
        """Tensors on GPUs go by nccl. What ranks tell each other beside them is on CPUs and goes by gloo, which raises
        where a rank is gone; nccl's watchdog would end the process without a word of ours."""
        return "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"

    def _begin(self) -> None:
        store, environment = shared_store(self.environment), self.environment
        name_interface(environment, store)
        dist.init_process_group(
            self._backend,
            store=store,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=environment.patience,
        )

    def _new(self, ranks: list[int]) -> dist.ProcessGroup | None:
        """A group of `ranks`; None on other ranks."""
        group: Any = dist.new_group(ranks, timeout=self.environment.patience, backend=self._backend)
        if self.environment.rank not in ranks:
            return None
        if self.environment.has_group:  # otherwise the end of the run's world group ends all groups
            self.stack.callback(dist.destroy_process_group, group)
        return group


def let_go_of_world() -> None:
    """Lets a module of PyTorch's go of the world group that was there as it was imported (by torch.func, by DDP).

    Its functions take that group as a default argument, and would keep its threads until the interpreter has gone,
    which then may abort. None means the world group of the call, as where the module is imported before there is any.
    """
    module = importlib.import_module("torch.distributed.nn.functional")
    for function in vars(module).values():
        if isinstance(function, FunctionType) and function.__defaults__:
            values = function.__defaults__
            function.__defaults__ = tuple(None if isinstance(value, dist.ProcessGroup) else value for value in values)
