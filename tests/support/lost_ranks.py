"""Ranks that one of them leaves waiting. As a module of a user's own, `lost_ranks:task` is the task whose rank does so.

The rank that is lost leaves its process id in the file `lost` of the current folder.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from launching import PATIENCE, Process, clean_environment, free_port, start
from own_tasks import Blobs

OUTER_STEPS = 3
EPOCHS = 3
MOMENTS = ("build", *(f"{step}.{epoch}" for step in range(OUTER_STEPS) for epoch in range(EPOCHS)), "0.val", "2.val")
"""While the task is built; before an epoch of an outer step; before its validation."""
LOST = "LOST_RANK"
"""The environment variable that says which rank is lost, how (a signal, HANG or EXIT) and when: `1 SIGSTOP 1.2`."""


class LostRank(Blobs):
    """Blobs of which a rank is lost when it comes to a moment: one of `MOMENTS`, or its batch or test number N."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn, self.tests = 0, 0
        self._reach("build")

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        self._reach(f"{outer_step}.{epoch}")
        for batch in super().train_batches(outer_step, epoch):
            self.drawn += 1
            self._reach(f"batch-{self.drawn}")
            yield batch

    def val_batches(self, outer_step: int) -> Any:
        self._reach(f"{outer_step}.val")
        return super().val_batches(outer_step)

    def test_batches(self) -> Any:
        self.tests += 1
        self._reach(f"test-{self.tests}")
        return super().test_batches()

    def _reach(self, moment: str) -> None:
        # Checks before the run read batches, too: those of its first outer step.
        victim, how, when = os.environ.get(LOST, "-1 - -").split()
        rank = os.environ.get("RANK", "0")
        if (moment, rank) != (when, victim):
            return
        Path("lost").write_text(str(os.getpid()))
        if how == "HANG":
            time.sleep(10 * PATIENCE)
        if how == "EXIT":
            os._exit(0)
        os.kill(os.getpid(), getattr(signal, how))


def task() -> LostRank:
    return LostRank()


def write_config(folder: Path, timeout: float, **changes: Any) -> None:
    """`config.yaml` of a run of three outer steps with four tangents."""
    config = {
        "task": {"name": "lost_ranks:task"},
        "inner": {"epochs": EPOCHS},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.005, "buckets": 3}, "momentum": {"init": 0.5, "step": 0.05}},
        "outer": {"optimizer": "sign", "steps": OUTER_STEPS},
        "consistency": {"every": 2},
        "device": "cpu",
        "name": "run",
        "distributed": {"timeout": timeout},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


@dataclass(frozen=True)
class Left:
    """How a rank ended that was left waiting."""

    status: int | None
    seconds: float
    """After the victim was lost."""
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it says as an error."""
        return self.err.splitlines()


@contextmanager
def background(
    command: Sequence[str], ranks: int, folder: Path, views: Sequence[Path] = (), **environment: str
) -> Iterator[list[Process]]:
    """`python command...` on some ranks of this host, which are killed at the end.

    Args:
        views: rank → the path by which it knows `folder`, where ranks know it by several.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    place |= {"LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"} | environment
    processes = []
    for rank in range(2):  # the processes that are forked import PyTorch first: no part of the time that ranks wait
        start(["-c", ""], folder, clean_environment(), rank).communicate()
    try:
        for rank in range(ranks):
            variables = clean_environment(**place, RANK=str(rank), LOCAL_RANK=str(rank))
            processes.append(start(command, views[rank] if views else folder, variables, rank))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def left_waiting(
    folder: Path, ranks: int, command: Sequence[str], victim: int, how: str, when: str, views: Sequence[Path] = ()
) -> dict[int, Left]:
    """rank → how each rank of `fds-dist command...` ended but the victim. `views`: see `background`."""
    lost = f"{victim} {how} {when}"
    with background(["-m", "fds_dist", *command], ranks, folder, views, **{LOST: lost}) as processes:
        deadline = time.monotonic() + PATIENCE
        while not (folder / "lost").exists():
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes), "a rank ended before one was lost"
            time.sleep(0.05)
        lost_at = time.monotonic()
        ends: dict[int, float] = {}
        while len(ends) < ranks - 1:
            assert time.monotonic() < deadline, f"only ranks {list(ends)} have ended"
            now = time.monotonic()
            ended = [rank for rank, process in enumerate(processes) if rank != victim and process.poll() is not None]
            ends = dict.fromkeys(ended, now - lost_at) | ends
            time.sleep(0.05)
        said = {rank: processes[rank].communicate() for rank in ends}
        return {rank: Left(processes[rank].returncode, ends[rank], *said[rank]) for rank in ends}
