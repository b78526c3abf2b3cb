"""What the launcher says about this process: torchrun, deepspeed, srun, or nobody (one process)."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fds_dist.common.faults import Fault, UserError


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

    @property
    def distributed(self) -> bool:
        """Whether there is a process group to join."""
        return self.world_size > 1


_DEFAULT_SLURM_PORT = 29400


def read_environment(env: Mapping[str, str] | None = None) -> LaunchEnvironment:
    """Reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`, or else srun's variables.

    Raises:
        UserError: a variable is missing or no number; every fault is named.
    """
    env = os.environ if env is None else env
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from_variables(env)
    if "SLURM_PROCID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _from_variables(_slurm_variables(env))
    return LaunchEnvironment()


def _from_variables(env: Mapping[str, str]) -> LaunchEnvironment:
    faults: list[Fault] = []

    def whole(name: str, default: int | None, low: int, high: float = math.inf) -> int:
        text = env.get(name, "" if default is None else str(default))
        if re.fullmatch(r"[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        upper = "" if math.isinf(high) else f" and at most {high}"
        expected = f"a whole number of at least {low}{upper}, set by torchrun, deepspeed or srun"
        faults.append(
            Fault(f"environment variable {name}", f"{text!r} is not valid" if text else "is not set", expected)
        )
        return low

    rank, world_size = whole("RANK", None, 0), whole("WORLD_SIZE", None, 1)
    if not faults and rank >= world_size:
        faults.append(Fault("environment variable RANK", f"{rank} is out of range", f"below WORLD_SIZE={world_size}"))
    several = world_size > 1
    address = env.get("MASTER_ADDR", "")
    port = whole("MASTER_PORT", None if several else 0, 1 if several else 0, 65535)
    if several and not address:
        faults.append(Fault("environment variable MASTER_ADDR", "is not set", "the host name of rank 0"))
    local_rank = whole("LOCAL_RANK", rank, 0)
    local_size = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"  # the second is deepspeed's
    local_world_size = whole(local_size, local_rank + 1, 1)
    restarts = whole("TORCHELASTIC_RESTART_COUNT", 0, 0)
    if faults:
        raise UserError(faults)
    return LaunchEnvironment(rank, world_size, local_rank, local_world_size, address, port, restarts)


def launcher() -> str | None:
    """What tells the launcher of this process from all others there ever were: its host, process id and start.

    None where it is not torchrun, which alone may start its ranks again.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    pid = os.getppid()
    try:  # the 22nd field, counted from behind the program's name, which may hold blanks
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = "?"  # a system without /proc
    return f"{socket.gethostname()} {pid} {started}"


def _slurm_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The same names from srun's step variables."""
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env.get("SLURM_STEP_NUM_TASKS", ""),
        "LOCAL_RANK": env.get("SLURM_LOCALID", ""),
        "LOCAL_WORLD_SIZE": tasks_on_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""), env.get("SLURM_NODEID", "")),
        "MASTER_ADDR": env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": env.get("MASTER_PORT") or str(_DEFAULT_SLURM_PORT + _whole(env.get("SLURM_JOB_ID")) % 10_000),
    }


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def tasks_on_node(tasks_per_node: str, node: str) -> str:
    """The entry of a SLURM list for the node with number `node`: `4(x2),3` says 4 on nodes 0 and 1, 3 on node 2."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    counts = [count for count, times in runs for _ in range(int(times or 1))]
    return counts[min(_whole(node), len(counts) - 1)] if counts else ""


def first_host(node_list: str) -> str:
    """The first host of a SLURM list: `gpu[003-005,9],login` → `gpu003`, `rack[1-2]-node[7,9]` → `rack1-node7`."""
    smallest = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", node_list)  # every bracket to its first entry
    return smallest.split(",")[0]
