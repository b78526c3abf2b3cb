"""Starting ranks as processes, as a launcher would; and the runs that several tests start there.

As a program, `python launching.py JOBS.json` runs several configs one after the other on whatever ranks it is started
as: starting PyTorch takes longer than a small run. How each of them ended is in `JOBS.json.RANK`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from forking import Forked, forkable, parent

SUPPORT = Path(__file__).resolve().parent
PATIENCE = 300
"""Seconds after which ranks are stopped: a hang fails its test instead of the whole session."""

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    status: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what a launcher sets, and with these modules and the package importable."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    path = os.pathsep.join(map(str, (SUPPORT, SUPPORT.parents[1])))
    return {**kept, "PYTHONPATH": path, "COLUMNS": "80", **changes}


def wait_for(condition: Callable[[], object]) -> None:
    """Returns once it holds; fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


Process: TypeAlias = subprocess.Popen[str] | Forked


def start(command: Sequence[str], folder: Path, env: Mapping[str, str], rank: int = 0) -> Process:
    """`python command...` with pipes to both outputs: as a fork where that is the same as a new interpreter."""
    if forkable(env):
        return Forked(parent(rank % 2), command, folder, env)
    outputs: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdin=subprocess.DEVNULL, **outputs)


def start_ranks(
    command: Sequence[str], world_size: int, folders: Sequence[Path], env: Mapping[str, str] | None = None
) -> list[Ended]:
    """`python command...` on `world_size` ranks of one node, rank r in folder r (the last folder for all others)."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    shared["LOCAL_WORLD_SIZE"] = str(world_size)
    processes = []
    for rank in range(world_size):
        place = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
        folder = folders[min(rank, len(folders) - 1)]
        processes.append(start(command, folder, (clean_environment() if env is None else dict(env)) | place, rank))
    try:
        outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode or 0, *output) for process, output in zip(processes, outputs, strict=True)]


def run_jobs(
    folder: Path, world_size: int, jobs: Sequence[Mapping[str, Any]], env: Mapping[str, str] | None = None
) -> list[list[dict[str, Any]]]:
    """Per rank the outcomes of `jobs`: keyword arguments of `fds_dist.optimize`."""
    folder.mkdir(parents=True)
    path = folder / "jobs.json"
    path.write_text(json.dumps(list(jobs)))
    ended = start_ranks([str(SUPPORT / "launching.py"), str(path)], world_size, [folder], env)
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * world_size
    return [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(world_size)]


def outcome(job: Mapping[str, Any]) -> dict[str, Any]:
    """What `optimize(**job)` returned or raised, as JSON values."""
    import fds_dist

    try:
        result = fds_dist.optimize(**job, progress=False)
    except (Exception, KeyboardInterrupt) as error:
        facts = {name: getattr(error, name) for name in ("step", "ranks") if hasattr(error, name)}
        return {"raised": type(error).__name__, "message": str(error), **facts}
    return {"run_dir": str(result.run_dir), "schedule": result.schedule.to_json()}


if __name__ == "__main__":
    jobs_file = sys.argv[1]
    ends = [outcome(job) for job in json.loads(Path(jobs_file).read_text())]
    Path(f"{jobs_file}.{os.environ.get('RANK', '0')}").write_text(json.dumps(ends))
