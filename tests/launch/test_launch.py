"""The launch scripts: what they say, what they pass on, and that the work of a lost process is not lost with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from forked_python import forked_python
from launch_scripts import (
    LAUNCH,
    let_go,
    result_of,
    script_environment,
    started,
    uninterrupted,
    wait_for_ranks,
    write_config,
)
from launching import PATIENCE

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
SOURCED = ("common.sh", "help.sh")
"""What other scripts read; nobody starts them."""
COMMANDS = ("single_node.sh", "multi_node.sh", "deepspeed.sh", "slurm.sbatch")
"""Those that take a command of fds-dist, or its arguments."""


def run(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=script_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


# --- their text ---


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name not in SOURCED], ids=lambda path: path.name)
def test_help_names_every_setting(path: Path, tmp_path: Path) -> None:
    done = run(tmp_path, path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert path.name in done.stdout
    assert "Environment:" in done.stdout
    assert "SBATCH" not in done.stdout
    text = path.read_text()
    for name in ("NPROC", "MAX_RESTARTS", "NNODES", "ENDPOINT", "JOB", "HOSTFILE", "PORT", "OUTPUT_DIR", "NAME"):
        assert name in done.stdout or f"${{{name}:" not in text, name


@pytest.mark.parametrize("name", COMMANDS)
def test_without_arguments_the_help_is_an_error(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, LAUNCH / name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run(tmp_path, LAUNCH / name, "--help").stdout


# --- what they pass on ---


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A Python that has every module, prints its arguments but for its own code, and knows no way but to this host."""
    path = tmp_path / "python"
    path.write_text(
        """#!/usr/bin/env bash
        [[ $1 == -c || $2 == fds_dist.distributed.addresses ]] && exit
        echo "$OMP_NUM_THREADS:" "$@"
        """
    )
    path.chmod(0o755)
    return path


TORCHRUN = LAUNCH / "torchrun.py"
JOINED = "--rdzv-backend c10d --rdzv-endpoint localhost:29400 --rdzv-id"


@pytest.mark.parametrize(
    ("name", "environment", "arguments"),
    [
        (
            "single_node.sh",
            {},
            f"1: {TORCHRUN} --standalone --local-addr 127.0.0.1 --nproc-per-node 1 --max-restarts 0 -m fds_dist",
        ),
        (
            "single_node.sh",
            {"NPROC": "3", "MAX_RESTARTS": "2", "OMP_NUM_THREADS": "4"},
            f"4: {TORCHRUN} --standalone --local-addr 127.0.0.1 --nproc-per-node 3 --max-restarts 2 -m fds_dist",
        ),
        (
            "single_node.sh",
            {"CUDA_VISIBLE_DEVICES": "0,2"},
            f"1: {TORCHRUN} --standalone --local-addr 127.0.0.1 --nproc-per-node 2 --max-restarts 0 -m fds_dist",
        ),
        (
            "multi_node.sh",
            {"NNODES": "2", "ENDPOINT": "node1:29400"},
            f"1: {TORCHRUN} --nnodes 2 --nproc-per-node 1 --max-restarts 0 {JOINED} fds-dist --local-addr node1"
            " -m fds_dist",
        ),
        (
            "multi_node.sh",
            {
                **{"NNODES": "4", "ENDPOINT": "[fd00::1]:29400", "NPROC": "8", "JOB": "seven", "MAX_RESTARTS": "1"},
                "LOCAL_ADDR": "node2",
            },
            f"1: {TORCHRUN} --nnodes 4 --nproc-per-node 8 --max-restarts 1 {JOINED} seven --local-addr node2"
            " -m fds_dist",
        ),
        (
            "deepspeed.sh",
            {"NPROC": "2", "PORT": "29501"},
            "1: -m deepspeed.launcher.runner --num_gpus 2 --master_port 29501 --module fds_dist",
        ),
        (
            "deepspeed.sh",
            {"HOSTFILE": "hosts"},
            "1: -m deepspeed.launcher.runner --hostfile hosts --master_port 29500 --module fds_dist",
        ),
        (
            "deepspeed.sh",
            {"HOSTFILE": "hosts", "NPROC": "2"},
            "1: -m deepspeed.launcher.runner --hostfile hosts --num_gpus 2 --master_port 29500 --module fds_dist",
        ),
    ],
)
def test_settings_come_from_the_environment(
    name: str, environment: dict[str, str], arguments: str, stand_in: Path, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("node1 slots=2\n")
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    done = run(tmp_path, LAUNCH / name, "check", "a config.yaml", **{**no_gpu, "PYTHON": str(stand_in), **environment})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{arguments} check a config.yaml\n"


@pytest.mark.parametrize(
    ("name", "environment", "line"),
    [
        ("multi_node.sh", {"ENDPOINT": "node1:29400"}, "NNODES: '' is not valid; expected how many nodes there are"),
        ("multi_node.sh", {"NNODES": "2"}, "ENDPOINT: '' is not valid; expected HOST:PORT, where the nodes meet"),
        ("multi_node.sh", {"NNODES": "2", "ENDPOINT": "node1"}, "ENDPOINT: 'node1' is not valid"),
        ("multi_node.sh", {"NNODES": "2", "ENDPOINT": "nowhere.invalid:1"}, "nowhere.invalid: "),
        ("single_node.sh", {"NPROC": "two"}, "NPROC: 'two' is not valid; expected a whole number of at least 1"),
        ("single_node.sh", {"PYTHON": "/nowhere/python"}, "no Python with torch and fds_dist: /nowhere/python; "),
        ("deepspeed.sh", {"HOSTFILE": "missing"}, "HOSTFILE: there is no file missing; "),
        ("slurm.sbatch", {}, "SLURM_JOB_ID: is not set; expected a start by sbatch"),
    ],
)
def test_wrong_settings_are_one_line(name: str, environment: dict[str, str], line: str, tmp_path: Path) -> None:
    if name == "deepspeed.sh":
        pytest.importorskip("deepspeed")
    done = run(tmp_path, LAUNCH / name, "check", "config.yaml", **environment)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"fds-dist: {line}")


# --- on one node ---


@pytest.mark.slow  # the same script starts `optimize` on two processes below
def test_check_on_two_processes(tmp_path: Path) -> None:
    write_config(tmp_path)
    done = run(tmp_path, LAUNCH / "single_node.sh", "check", "config.yaml", NPROC="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 ranks" in done.stdout


def test_wrong_input_ends_with_its_own_status_and_line(tmp_path: Path) -> None:
    write_config(tmp_path)
    done = run(tmp_path, LAUNCH / "single_node.sh", "optimize", "config.yaml", "inner.epoch=1", NPROC="2")
    assert (done.returncode, done.stdout) == (2, "")
    ours = [line for line in done.stderr.splitlines() if "torch/distributed/elastic" not in line]  # its own record
    assert ours == ["fds-dist: inner.epoch: unknown key; did you mean inner.epochs?"]


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank(restarts: int, tmp_path: Path) -> None:
    """With MAX_RESTARTS all start again and go on in the same folder; without, they say what happened and how to."""
    write_config(tmp_path)
    ranks = str(forked_python(tmp_path / "bin"))
    environment = script_environment(NPROC="2", MAX_RESTARTS=str(restarts), PYTHON_EXEC=ranks)
    log = tmp_path / "log"
    command = [str(LAUNCH / "single_node.sh"), "optimize", "config.yaml", "name=run"]
    with started(command, tmp_path, log, environment) as launcher:
        pids = wait_for_ranks(tmp_path, 2, [launcher])
        let_go(tmp_path)
        os.kill(pids[1], signal.SIGKILL)
        status = launcher.wait(PATIENCE)
    said = log.read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"], said
    if restarts:
        assert status == 0, said
        assert result_of(tmp_path / "runs" / "run") == uninterrupted(tmp_path)
    else:
        assert status == 128 + signal.SIGKILL, said
        assert said.splitlines()[-1] == "fds-dist: rank 1 was killed by SIGKILL"
        assert "optimize --resume runs/run" in said
        assert "optimize --resume runs/run" in said
