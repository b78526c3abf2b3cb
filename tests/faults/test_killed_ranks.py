"""kill -9 of a rank within a search by another estimator than forward mode: the other rank ends with one line, and what
is resumed comes to the same bits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from launching import start_ranks
from lost_ranks import left_waiting, write_config

TIMEOUT = 60.0
"""Nobody waits for it here: a process that ends closes its connections."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    "reverse": {"estimator": "reverse", "mesh": {"data": 2}},
    "greedy": {"estimator": "greedy", "greedy": {"discount": 0.5}},
}
BATCHES = {"reverse": range(16, 93, 4), "greedy": range(12, 51, 2)}
"""Before which of the batches that a rank reads it is killed, 20 of each: from the checks before the first outer step
to the last epoch of the last one, there and back."""
CASES = [(estimator, batch) for estimator, batches in BATCHES.items() for batch in batches]

Numbers = list[tuple[Any, ...]]


def write(folder: Path, estimator: str) -> None:
    """A search that saves within an outer step as often as it can."""
    write_config(folder, TIMEOUT, **ESTIMATORS[estimator], checkpoint={"every_seconds": 1e-9})


def search(folder: Path, *line: str) -> tuple[str, Numbers]:
    """What two ranks say and compute that nobody disturbs."""
    ended = start_ranks(["-m", "fds_dist", "optimize", *line], 2, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    lines = map(json.loads, (folder / "runs" / "run" / "history.jsonl").read_text().splitlines())
    return ended[0].out, [(line["hyperparameters"], line["hypergradients"], line["val_loss"]) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """estimator → what its search comes to."""
    numbers: dict[str, Numbers] = {}
    for estimator in ESTIMATORS:
        folder = tmp_path_factory.mktemp(estimator)
        write(folder, estimator)
        numbers[estimator] = search(folder, "config.yaml")[1]
        shutil.rmtree(folder)
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "batch"), CASES)
def test_a_killed_rank_is_named_and_the_search_goes_on(
    estimator: str, batch: int, whole: dict[str, Numbers], tmp_path: Path
) -> None:
    write(tmp_path, estimator)
    victim = BATCHES[estimator].index(batch) % 2
    command = ["optimize", "config.yaml"]
    ((left, end),) = left_waiting(tmp_path, 2, command, victim, "SIGKILL", f"batch-{batch}").items()
    assert (left, end.status) == (1 - victim, 1)
    assert len(end.lines) == 1, end.err
    (line,) = end.lines
    assert re.match(rf"fds-dist: lost another rank: rank {victim} \(.*\) has ended; see its output; ", line), line
    run_dir = tmp_path / "runs" / "run"
    saved = list(run_dir.glob("checkpoints/inner*/manifest.json"))
    resume = ["--resume", "runs/run"] if run_dir.exists() else ["config.yaml"]  # else it had not begun
    said, numbers = search(tmp_path, *resume)
    assert numbers == whole[estimator]
    assert ("goes on from inner step" in said) == bool(saved)
