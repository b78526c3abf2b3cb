"""SLURM, by stand-ins of `srun` and `scontrol`: two nodes that are both this machine. No real SLURM takes part."""

from __future__ import annotations

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
from launching import PATIENCE, free_port

STAND_INS = {
    # `--ntasks N` processes on one node, or one on each of two; a bad end of one ends the others; SIGTERM goes on.
    "srun": r"""#!/usr/bin/env bash
        echo "srun $*" >>"$SLURM_SUBMIT_DIR/calls"
        nodes=2 tasks=1
        while [[ $1 == --* ]]; do
            [[ $1 == --ntasks ]] && nodes=1 tasks=$2 && shift
            shift
        done
        echo $$ >"$SLURM_SUBMIT_DIR/step"
        pids=()
        trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
        for ((rank = 0; rank < nodes * tasks; rank++)); do
            SLURM_PROCID=$rank SLURM_LOCALID=$((rank % tasks)) SLURM_NODEID=$((rank / tasks)) \
                SLURM_STEP_NUM_TASKS=$((nodes * tasks)) SLURM_STEP_TASKS_PER_NODE="$tasks(x$nodes)" \
                SLURM_STEP_NODELIST=127.0.0.1 "$@" &
            pids+=($!)
        done
        status=0
        for pid in "${pids[@]}"; do
            while kill -0 "$pid" 2>/dev/null; do # a signal ends a wait before the process ends
                wait "$pid"; ended=$?
            done
            if ((ended && !status)); then status=$ended; kill -TERM "${pids[@]}" 2>/dev/null; fi
        done
        exit "$status"
    """,
    # A job that goes back into the queue gets SIGTERM in its steps first.
    "scontrol": r"""#!/usr/bin/env bash
        echo "scontrol $*" >>"$SLURM_SUBMIT_DIR/calls"
        case $1 in
        show) printf '127.0.0.1\n127.0.0.1\n' ;;
        requeue) kill -TERM "$(<"$SLURM_SUBMIT_DIR/step")" ;;
        esac
    """,
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job's batch shell, in whose folder there is a config."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    write_config(tmp_path)
    environment = script_environment(NPROC="1", PORT=str(free_port()))
    job = {"JOB_ID": "4711", "JOB_NUM_NODES": "2", "JOB_NODELIST": "127.0.0.[1,1]", "SUBMIT_DIR": str(tmp_path)}
    return {
        **environment,
        "PATH": f"{tmp_path / 'bin'}:{environment['PATH']}",
        "FDS_DIST": str(LAUNCH.parent),
        **{f"SLURM_{name}": value for name, value in job.items()},
    }


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_srun_alone_starts_the_ranks(slurm: dict[str, str], tmp_path: Path) -> None:
    let_go(tmp_path)
    line = [
        "srun",
        "--ntasks",
        "2",
        str(forked_python(tmp_path / "bin")),
        "-m",
        "fds_dist",
        "optimize",
        "config.yaml",
        "name=run",
    ]
    environment = {**slurm, "MASTER_PORT": slurm["PORT"]}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 ranks" in done.stdout
    assert result_of(tmp_path / "runs" / "run") == uninterrupted(tmp_path)


@pytest.mark.slow
def test_a_job_goes_back_into_the_queue_and_on_from_where_it_stood(slurm: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "slurm_script"  # SLURM runs a copy
    shutil.copy(LAUNCH / "slurm.sbatch", script)
    line = ["bash", str(script), "config.yaml", "inner.epochs=2"]
    first, second = tmp_path / "first.log", tmp_path / "second.log"

    with started(line, tmp_path, first, {**slurm, "SLURM_CPUS_PER_TASK": "3"}) as job:
        wait_for_ranks(tmp_path, 2, [job])
        job.send_signal(signal.SIGUSR1)  # --signal=B: goes to this shell alone
        assert job.wait(PATIENCE) != 0
    assert "fds-dist: back in the queue; the results so far are in runs/slurm-4711" in first.read_text()
    assert calls(tmp_path)[0::2] == ["scontrol show hostnames 127.0.0.[1,1]", "scontrol requeue 4711"]
    assert calls(tmp_path)[1].startswith("srun --ntasks-per-node=1 --cpus-per-task=3 --kill-on-bad-exit=1 ")
    assert "optimize config.yaml inner.epochs=2 output_dir=runs name=slurm-4711" in calls(tmp_path)[1]

    let_go(tmp_path)
    with started(line, tmp_path, second, {**slurm, "SLURM_RESTART_COUNT": "1"}) as job:
        assert job.wait(PATIENCE) == 0, second.read_text()
    assert calls(tmp_path)[-1].endswith("multi_node.sh optimize --resume runs/slurm-4711 inner.epochs=2")
    assert "resumed at 1" in second.read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["slurm-4711"]
    assert result_of(tmp_path / "runs" / "slurm-4711") == uninterrupted(tmp_path)
