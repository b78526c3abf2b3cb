"""What launchers call the place of a process: srun, mpirun and others, in the names of torchrun."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from fds_dist.distributed.processes import identity, parent, variables


@dataclass(frozen=True)
class Launcher:
    """The names of the environment variables that tell a process its place."""

    rank: str
    size: str
    local_rank: tuple[str, ...]
    """The first that is set counts."""
    local_size: tuple[str, ...]


SLURM = Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ("SLURM_STEP_TASKS_PER_NODE",))
OPEN_MPI = Launcher(
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
MVAPICH = Launcher(
    "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", ("MV2_COMM_WORLD_LOCAL_RANK",), ("MV2_COMM_WORLD_LOCAL_SIZE",)
)
PMI = Launcher("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"), ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"))
"""MPICH, Intel MPI and Cray PALS."""
LAUNCHERS = (SLURM, OPEN_MPI, MVAPICH, PMI)

_SLURM_PORTS, _MPI_PORTS = 29400, 20000
"""The first of 10,000 ports each. Those of MPI are below the ports that Linux hands out by itself."""


Told = dict[str, tuple[str, str]]
"""By torchrun's name of something (`RANK`, `WORLD_SIZE`, ...): the variable that tells it, and what that says."""


def started_by(env: Mapping[str, str]) -> Launcher | None:
    """The launcher that started this process together with others, as far as it tells; None if there is none.

    Where one launcher starts another (srun the daemons of mpirun), it is that with the most processes.
    """
    present = [launcher for launcher in LAUNCHERS if launcher.rank in env or launcher.size in env]
    sized = [launcher for launcher in present if launcher.size in env]
    if wrong := [launcher for launcher in sized if not is_number(env[launcher.size])]:
        return wrong[0]  # whoever checks its variables says what is wrong
    if not sized:
        # A batch script of SLURM has the rank 0 and is no step of several tasks.
        unsized = [launcher for launcher in present if launcher is not SLURM or env[launcher.rank] != "0"]
        return unsized[0] if unsized else None
    largest = max(sized, key=lambda launcher: int(env[launcher.size]))  # the first of several
    return largest if int(env[largest.size]) != 1 else None


def is_told_one(env: Mapping[str, str]) -> bool:
    """Whether a launcher says that it started this process alone."""
    return any(env.get(launcher.size) == "1" for launcher in LAUNCHERS)


def told_by(launcher: Launcher, env: Mapping[str, str]) -> Told:
    """What the launcher says, and where its processes meet: on a single host, at a port that its job determines.

    What it should say and does not is the empty string.
    """
    local_rank = next((name for name in launcher.local_rank if name in env), launcher.local_rank[0])
    local_size = next((name for name in launcher.local_size if name in env), launcher.local_size[0])
    names = {"RANK": launcher.rank, "WORLD_SIZE": launcher.size, "LOCAL_RANK": local_rank}
    told = {key: (name, env.get(name, "")) for key, name in names.items()}
    if launcher is SLURM:
        tasks = tasks_on_node(env.get(local_size, ""), env.get("SLURM_NODEID", ""))
        address = first_host(env.get("SLURM_STEP_NODELIST", ""))
        port = _SLURM_PORTS + _whole(env.get("SLURM_JOB_ID")) % 10_000
        told |= {"LOCAL_WORLD_SIZE": (local_size, tasks), "MASTER_ADDR": ("MASTER_ADDR", address)}
        return told | {"MASTER_PORT": ("SLURM_JOB_ID", str(port))}
    if local_size not in env:
        return told
    told |= {"LOCAL_WORLD_SIZE": (local_size, env[local_size])}
    if env[local_size] != env.get(launcher.size):
        return told
    port = _MPI_PORTS + zlib.crc32(_job(launcher, env).encode()) % 10_000
    return told | {"MASTER_ADDR": ("MASTER_ADDR", "127.0.0.1"), "MASTER_PORT": ("MASTER_PORT", str(port))}


def told_local_rank(env: Mapping[str, str]) -> str:
    """The place on its host that any launcher told this process, unchecked; "0" where none did."""
    names = ["LOCAL_RANK", *(name for launcher in reversed(LAUNCHERS) for name in launcher.local_rank)]
    return next((env[name] for name in names if env.get(name)), "0")


def launcher_process() -> str | None:
    """What tells the torchrun of this process from all others there ever were: its host, process id and start.

    None where the launcher is another, since torchrun alone may start its ranks again.
    """
    return identity(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else None


def _job(launcher: Launcher, env: Mapping[str, str]) -> str:
    """What all processes of an MPI job on one host have in common, and no other job there."""
    if "PMIX_NAMESPACE" in env:
        return env["PMIX_NAMESPACE"]
    told = f"{launcher.rank}={env.get(launcher.rank, '')}".encode()
    ancestor = os.getppid()
    while ancestor > 1 and told in variables(ancestor):  # a shell between the launcher and this process
        ancestor = parent(ancestor)
    return identity(ancestor)


def is_number(text: str) -> bool:
    """Whether it is a whole number, without sign."""
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


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
