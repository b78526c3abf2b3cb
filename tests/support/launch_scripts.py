"""Launch scripts in tests: a tiny run that can be stopped in its midst, started beside the test that watches it.

As a module of a user's own, `launch_scripts:pausing` is the task of that run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from launching import PATIENCE, clean_environment
from own_tasks import Blobs

import fds_dist

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
OUTER_STEPS = 3


class Pausing(Blobs):
    """In outer step 1 each rank writes its process id to `here-RANK` in `folder` and waits for the file `go` there."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        if outer_step == 1 and not (self.folder / "go").exists():
            rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
            (self.folder / f"here-{rank}.new").write_text(str(os.getpid()))
            (self.folder / f"here-{rank}.new").rename(self.folder / f"here-{rank}")
            wait_until((self.folder / "go").exists, "go")
        return super().train_batches(outer_step, epoch)


def pausing(folder: str) -> Pausing:
    return Pausing(folder)


def write_config(folder: Path) -> None:
    """`config.yaml`: three outer steps of a run on the CPU, with four tangents."""
    content = {
        "task": {"name": "launch_scripts:pausing", "folder": str(folder)},
        "inner": {"epochs": 2},
        "hyperparameters": {
            "lr": {"init": 0.05, "step": 0.005, "buckets": 3},
            "momentum": {"init": 0.5, "step": 0.05},
        },
        "outer": {"optimizer": "sign", "steps": OUTER_STEPS},
        "device": "cpu",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def script_environment(**changes: str) -> dict[str, str]:
    """That of a user who has the Python of these tests."""
    inherited = {"NPROC", "NNODES", "ENDPOINT", "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME"}
    kept = {
        name: value
        for name, value in clean_environment().items()
        if name not in inherited and not name.startswith(("SLURM_", "TORCHELASTIC_"))
    }
    return {**kept, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **changes}


@contextmanager
def started(
    command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The command in the background, what it says in `log`; it and what it started are ended at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # on the first, launchers end ranks, which have left the group
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Returns when the condition holds; a failed test instead of a hang where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.05)


def wait_for_ranks(folder: Path, ranks: int, launchers: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The process ids of the ranks that pause, when all have come there."""
    files = [folder / f"here-{rank}" for rank in range(ranks)]

    def are_here() -> bool:
        assert all(launcher.poll() is None for launcher in launchers), "a launcher ended early"
        return all(file.exists() for file in files)

    wait_until(are_here, f"{ranks} ranks in outer step 1")
    return [int(file.read_text()) for file in files]


def let_go(folder: Path) -> None:
    (folder / "go").touch()


def uninterrupted(folder: Path) -> dict[str, Any]:
    """The result of the same run by one process that nobody disturbs."""
    let_go(folder)
    result = fds_dist.optimize(folder / "config.yaml", ["name=alone", f"output_dir={folder}"], progress=False)
    return result_of(result.run_dir)


def result_of(run_dir: Path) -> dict[str, Any]:
    """All numbers of a run that do not depend on the clock and the number of ranks, to the last bit."""
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    names = ("outer_step", "hyperparameters", "hypergradients", "val_loss", "val_accuracy", "step_sizes", "events")
    history = [{name: line[name] for name in names} for line in lines]
    assert len(history) == OUTER_STEPS
    return {"history": history, "schedule": (run_dir / "schedule.json").read_bytes()}
