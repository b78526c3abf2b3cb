"""What a command needs before its first word, by the modules that are imported; and how it ends without memory."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import clean_environment

from fds_dist.cli import LEFT_OUT, main
from fds_dist.commands import FAILED, WRONG_INPUT
from fds_dist.commands.definitions import COMMANDS
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.digits import read_digits

FAULTY = """
task: {name: digits, batch_size: 0}
hyperparameters: {lr: {init: 0.1, step: -1}}
outer: {stepz: 2}
"""


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter makes of `code`."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=clean_environment())


def test_faults_of_a_config_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FAULTY)
    without_torch = "import sys; sys.modules['torch'] = None; from fds_dist.cli import main; "
    ended = python(without_torch + "sys.exit(main(['check', 'config.yaml', 'seed=x']))", tmp_path)
    told = [line for line in ended.stderr.splitlines() if line.startswith("fds-dist: ")]
    assert told == [
        "fds-dist: hyperparameters.lr.step: -1 is out of range; expected a number above 0",
        "fds-dist: outer.stepz: unknown key; did you mean outer.steps?",
        "fds-dist: seed: 'x' is text; expected a whole number of at least 0",
    ]
    assert ended.returncode == WRONG_INPUT


def test_a_device_without_memory_is_one_line_that_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: Namespace) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")

    monkeypatch.setitem(COMMANDS, "report", replace(COMMANDS["report"], run=run))
    assert main(["report", "RUN"]) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "fds-dist: the device is out of memory (CUDA out of memory. Tried to allocate 2 GiB.); expected"
    )
    assert "tangents.chunk_size" in line


def test_digits_are_read_without_scikit_learn_and_are_its_own(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits  # here, since its import takes a second

    code = "import sys; from fds_dist.tasks.digits import digits; digits(); sys.exit('sklearn' in sys.modules)"
    assert python(code, tmp_path).returncode == 0
    for ours, theirs in zip(read_digits(), load_digits(return_X_y=True), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_where_torch_is_left_out_schedules_are_read_and_training_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text(Schedule(4, {"lr": (0.2, 0.1)}).to_json())
    left_out = (
        f"import sys; sys.modules.update(dict.fromkeys({LEFT_OUT})); from fds_dist.cli import main; import fds_dist; "
    )
    ended = python(left_out + "print(fds_dist.load_schedule('.').at(3)['lr'])", tmp_path)
    assert (ended.stdout, ended.stderr) == ("0.1\n", "")
    ended = python(left_out + "sys.exit(main(['optimize', 'digits']))", tmp_path)
    assert ended.returncode == FAILED
    assert ended.stderr.splitlines() == [
        "fds-dist: this command needs torch, which is not installed; expected pip install with all dependencies"
    ]
