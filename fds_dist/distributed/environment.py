"""This process among all processes of the run: told by a launcher, by a process group that exists already, or alone."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NamedTuple

from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed.launchers import Launcher, Told, is_number, is_told_one, started_by, told_by


class GpuView(NamedTuple):
    """What a rank sees of the GPUs of its host, in JSON values."""

    local_rank: int
    local_world_size: int
    gpus: int
    uuids: Sequence[str] = ()
    """Of these GPUs where they are fewer than the ranks of the host, which may then see others each; else empty."""


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process among all processes of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_address: str = ""
    master_port: int = 0
    restarts: int = 0
    """How often torchrun has started all ranks again because one of this node was lost; nodes count differently."""
    one_host: bool = False
    """Whether the launcher says that all ranks are on this host."""
    has_group: bool = False
    """Whether the caller's process group of all ranks is used, instead of one of the run's own."""
    timeout: float = field(default=600.0, compare=False)
    """Seconds after which this rank no longer waits for another one: `distributed.timeout`. No part of the place."""
    gpus: tuple[GpuView, ...] = field(default=(), compare=False)
    """What each rank sees of GPUs, this rank first; empty: the ranks did not tell each other. No part of the place."""

    @property
    def distributed(self) -> bool:
        """Whether there are other ranks."""
        return self.world_size > 1

    @property
    def patience(self) -> timedelta:
        """`timeout`, as PyTorch takes it."""
        return timedelta(seconds=self.timeout)


def read_environment(env: Mapping[str, str] | None = None) -> LaunchEnvironment:
    """This process's place among all.

    A process group that the caller has made tells it, and is used. Without one, the environment variables of torchrun
    do (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`), or those of another launcher.

    Args:
        env: variables to read in place of those of this process; no process group is looked for.

    Raises:
        UserError: a variable is missing, no number, or contradicts another (every fault is named); or the process
            group cannot be used.
    """
    if env is not None:
        return _launched(env)
    group = _process_group_module()
    return _launched(os.environ) if group is None else _in_group(group)


def _process_group_module() -> Any:
    """`torch.distributed` where this process has a process group, else None; imports nothing."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def _in_group(group: Any) -> LaunchEnvironment:
    """The place in the default process group. What a launcher says of this host counts where it fits the group."""
    rank, world_size, backend = group.get_rank(), group.get_world_size(), group.get_backend()
    if world_size > 1 and backend in ("mpi", "fake"):
        problem = f"the one that exists has the backend {backend}, which has no store"
        raise UserError(Fault("process group", problem, "gloo or nccl, or none before this call"))
    try:
        launched = _launched(os.environ)
    except UserError:
        launched = LaunchEnvironment()  # the group was made without these variables
    if world_size < launched.world_size:
        problem = (
            f"the one that exists has {world_size} of {launched.world_size} ranks: each such group would search alone"
        )
        raise UserError(Fault("process group", problem, "one of all ranks, or none before this call"))
    place = replace(launched, rank=rank, world_size=world_size, has_group=world_size > 1)
    if world_size == launched.world_size:
        return place
    # Processes that the caller started, on one host as far as is known.
    return replace(place, local_rank=rank, local_world_size=world_size)


_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_INNER = ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "CROSS_RANK")
"""Set by torchrun and deepspeed. Whoever calls them under srun or mpirun means what they say."""
_EXPLICIT = {name: name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", *_MEETING)}
_EXPLICIT["LOCAL_SIZE"] = "LOCAL_WORLD_SIZE"  # deepspeed's name


def _launched(env: Mapping[str, str]) -> LaunchEnvironment:
    """The place that environment variables tell."""
    launcher = started_by(env)
    explicit = {key: (name, env[name]) for name, key in _EXPLICIT.items() if env.get(name)}
    if "RANK" not in env and "WORLD_SIZE" not in env:
        if launcher is None:
            return _alone(env)
        return _checked(told_by(launcher, env) | {key: explicit[key] for key in _MEETING if key in explicit}, env)
    if launcher is None or any(name in env for name in _INNER):
        return _checked(explicit, env)
    if faults := _contradictions(env, launcher):
        raise UserError(faults)
    # With another size, the launcher has started other launchers: what it says of hosts is about those.
    same = env.get("WORLD_SIZE") == env.get(launcher.size)
    return _checked((told_by(launcher, env) if same else {}) | explicit, env)


def _alone(env: Mapping[str, str]) -> LaunchEnvironment:
    if "PMIX_RANK" in env and not is_told_one(env):
        problem = f"is not set, and PMIX_RANK={env['PMIX_RANK']} does not tell how many processes there are"
        raise UserError(Fault("environment variable WORLD_SIZE", problem, "WORLD_SIZE, RANK and LOCAL_RANK"))
    return LaunchEnvironment()


def _contradictions(env: Mapping[str, str], launcher: Launcher) -> list[Fault]:
    """What `RANK` and `WORLD_SIZE` say against the launcher of these processes.

    A larger world may be right: the launcher has started other launchers then. With a smaller one, groups of processes
    would search side by side.
    """
    rank, size = env.get("RANK", ""), env.get("WORLD_SIZE", "")
    told_rank, told_size = env.get(launcher.rank, ""), env.get(launcher.size, "")
    if not all(text.isdecimal() for text in (size, told_size)):
        return []
    if int(size) < int(told_size):
        expected = f"{told_size}, or both RANK and WORLD_SIZE left out"
        return [Fault("environment variable WORLD_SIZE", f"{size} contradicts {launcher.size}={told_size}", expected)]
    if int(size) == int(told_size) and rank and rank != told_rank:
        expected = f"{told_rank}, or both RANK and WORLD_SIZE left out"
        return [Fault("environment variable RANK", f"{rank} contradicts {launcher.rank}={told_rank}", expected)]
    return []


def _checked(told: Told, env: Mapping[str, str]) -> LaunchEnvironment:
    """The place that the variables tell, where they are right."""
    told = told | {_RESTARTS: (_RESTARTS, env.get(_RESTARTS, "0"))}
    faults: list[Fault] = []

    def whole(key: str, default: int | None, low: int, high: float = math.inf) -> int:
        name, text = told.get(key, (key, "" if default is None else str(default)))
        if is_number(text) and low <= int(text) <= high:
            return int(text)
        upper = "" if math.isinf(high) else f" and at most {high}"
        problem = f"{text!r} is not valid" if text else "is not set"
        expected = f"a whole number of at least {low}{upper}, set by the launcher"
        faults.append(Fault(f"environment variable {name}", problem, expected))
        return low

    def bounded(key: str, number: int, bound: str) -> None:
        if not faults and key in told:
            faults.append(Fault(f"environment variable {told[key][0]}", f"{number} is out of range", bound))

    rank, world_size = whole("RANK", None, 0), whole("WORLD_SIZE", None, 1)
    if rank >= world_size:
        bounded("RANK", rank, f"below {told.get('WORLD_SIZE', ('WORLD_SIZE', ''))[0]}={world_size}")
    several = world_size > 1
    address = told.get("MASTER_ADDR", ("", ""))[1]
    port = whole("MASTER_PORT", None if several else 0, 1 if several else 0, 65535)
    if several and not address:
        faults.append(Fault("environment variable MASTER_ADDR", "is not set", "the host name of rank 0"))
    local_rank = whole("LOCAL_RANK", rank, 0)
    local_world_size = whole("LOCAL_WORLD_SIZE", local_rank + 1, 1)
    if local_rank >= local_world_size:
        bounded("LOCAL_RANK", local_rank, f"below the {local_world_size} processes on this host")
    if local_world_size > world_size:
        bounded("LOCAL_WORLD_SIZE", local_world_size, f"at most the {world_size} processes of all hosts")
    restarts = whole(_RESTARTS, 0, 0)
    if faults:
        raise UserError(faults)
    one_host = "LOCAL_WORLD_SIZE" in told and local_world_size == world_size
    return LaunchEnvironment(rank, world_size, local_rank, local_world_size, address, port, restarts, one_host)
