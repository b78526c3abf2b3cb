"""A rank of a retraining is killed: the other one ends with one line, and what is resumed comes to the same bits."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

import pytest
from launching import start_ranks
from lost_ranks import left_waiting, write_config

import fds_dist

TIMEOUT = 60.0
"""Nobody waits for it here: a process that ends closes its connections."""
RETRAIN = ["retrain", "runs/run", "epochs=3"]
MOMENTS = ("build", *(f"batch-{number}" for number in (1, 2, 3, 4, 5, 7, 8, 9, 12)), "test-3", "test-4")
"""Of 3 epochs of 4 batches and a test each; two looks at the test data come before."""
FILES = ("last.safetensors", "best.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run, with what its retraining came to on two ranks that nobody disturbed, as `whole`."""
    folder = tmp_path_factory.mktemp("run")
    write_config(folder, TIMEOUT, outer={"optimizer": "sign", "steps": 1, "judge_seeds": 0})
    overrides = [f"output_dir={folder / 'runs'}"]
    fds_dist.optimize(folder / "config.yaml", overrides, progress=False)
    ended = start_ranks(["-m", "fds_dist", *RETRAIN], 2, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    (folder / "runs" / "run" / "retrain").rename(folder / "whole")
    return folder


def check(folder: Path, at: Path, engine: str, victim: int, moment: str, whole: Path) -> None:
    shutil.copytree(folder / "runs", at / "runs")
    command = [*RETRAIN, f"engine={engine}"]
    ((left, end),) = left_waiting(at, 2, command, victim, "SIGKILL", moment).items()
    assert (left, end.status) == (1 - victim, 1)
    assert len(end.lines) == 1, end.lines
    (line,) = end.lines
    named = rf"rank {victim} \(host {re.escape(socket.gethostname())}, pid \d+\) has ended; see its output"
    place = r"its last step was step \d+ of the retraining with seed 0|it had told of no step yet"
    assert re.match(rf"fds-dist: lost another rank: {named}; ({place}) \(", line), line
    ended = start_ranks(["-m", "fds_dist", *command], 2, [at])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    for name in FILES:
        ours, theirs = at / "runs" / "run" / "retrain" / "0" / name, whole / "0" / name
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(("victim", "moment"), [(1, "batch-7")])
def test_the_other_rank_says_one_line_and_the_work_goes_on(
    victim: int, moment: str, folder: Path, tmp_path: Path
) -> None:
    check(folder, tmp_path, "ddp", victim, moment, folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(MOMENTS)))
def test_at_any_moment(index: int, folder: Path, tmp_path: Path) -> None:
    check(folder, tmp_path, "ddp", index % 2, MOMENTS[index], folder / "whole")


@pytest.mark.slow
def test_with_deepspeed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    whole = tmp_path / "whole"
    shutil.copytree(folder / "runs", whole / "runs")
    ended = start_ranks(["-m", "fds_dist", *RETRAIN, "engine=deepspeed"], 2, [whole])
    assert [rank.status for rank in ended] == [0, 0]
    (tmp_path / "lost").mkdir()
    check(folder, tmp_path / "lost", "deepspeed", 1, "batch-7", whole / "runs" / "run" / "retrain")
