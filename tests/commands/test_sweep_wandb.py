"""Sweeps with the real client of Weights & Biases: against a stand-in of its server on this machine, and offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_python import forked_python
from launching import PATIENCE, clean_environment, wait_for
from wandb_file import logged
from wandb_server import ENTITY, PROJECT, SWEEP, WandbServer

pytestmark = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")  # which takes a while

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
RANKS = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=${envvar:NPROC}"]
COMMAND = ["python", f"{LAUNCH}/torchrun.py", *RANKS, "-m", "fds_dist", "optimize", "config.yaml", "${args_no_hyphens}"]

CONFIG = {
    "task": {"name": "sweep_task:recorded", "folder": "values", "turn": 0},
    "inner": {"epochs": 2},
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02}},
    "outer": {"optimizer": "sign", "steps": 2},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with a config; an empty home, and nothing in the environment that speaks of W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def run(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=clean_environment(**{"NPROC": "2", "PYTHON": sys.executable, **environment}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture
def server(here: Path) -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


# --- a job's run ---

JOB = """
import sys
from pathlib import Path
from fds_dist.tracking import OuterRecord, RunEnd, RunStart, Trackers
from fds_dist.tracking.wandb_run import WandbTracker
from fds_dist.tracking.wandb_session import WandbSession, report_failure_to_sweep
if sys.argv[1] == "no run":
    with report_failure_to_sweep(rank=0):
        raise ValueError("planted")
run_dir = Path("runs/a")
trackers = Trackers([WandbTracker(WandbSession(project="another", usual_job_type="optimize"))])
goes_on = run_dir.exists()
run_dir.mkdir(parents=True, exist_ok=True)
(run_dir / "schedule.json").write_text("{}")
trackers.start(RunStart(run_dir, {"seed": 3, "outer": {"steps": 1}}, 1, 0, 1, 1, "cpu", goes_on))
trackers.outer(OuterRecord(0, 10, {"lr": [0.5]}, {"lr": [1.0]}, 2.0, 0.5, 1.0, 1, {}))
trackers.finish(RunEnd(sys.argv[1], "", {"lr": [0.5]}, 0, 2.0, 0.5, run_dir, plain_steps=30.0))
"""


def job(how: str, by_agent: bool = True, /, **environment: str) -> tuple[int, list[str]]:
    """Status and last words of what W&B's agent starts: sweep, run and a file of the values are in its environment."""
    Path("values.yaml").write_text(yaml.safe_dump({"wandb_version": 1, "seed": {"value": 3}}))
    of_agent = {"WANDB_SWEEP_ID": SWEEP, "WANDB_RUN_ID": "job-0", "WANDB_SWEEP_PARAM_PATH": "values.yaml"}
    done = run([sys.executable, "-c", JOB, how], **(of_agent if by_agent else {}), **environment)
    return done.returncode, done.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    ("how", "exit_code"),
    [("finished", 0), pytest.param("failed", 1, marks=pytest.mark.slow), ("interrupted", 1)],  # slow: told alike
)
def test_a_job_is_the_run_that_its_sweep_waits_for(server: WandbServer, how: str, exit_code: int) -> None:
    assert job(how, **server.environment) == (0, [])  # the config asks for no tracking, the sweep does
    (run,) = server.runs.values()
    assert list(server.runs) == ["job-0"]
    assert (run.sweep, run.exit_code) == (SWEEP, exit_code)
    assert run.config.items() >= {"seed": 3, "outer": {"steps": 1}}.items()
    assert [row["outer/val_loss"] for row in run.history if "outer_step" in row] == [2.0]
    assert run.summary.items() >= {"best_val_loss": 2.0, "best_val_accuracy": 0.5, "plain_steps": 30}.items()
    assert run.summary["schedule"]["nrows"] == 1
    assert run.artifacts == ["schedule-a"]
    assert Path("runs/a/wandb_run_id.txt").read_text() == "job-0\n"


# Slow: tests/tracking/test_wandb.py goes on with runs that no agent has started.
@pytest.mark.parametrize("by_agent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_goes_on_is_the_same_run(server: WandbServer, by_agent: bool) -> None:
    for how in ("interrupted", "finished"):
        assert job(how, by_agent, WANDB_MODE="online", **server.environment) == (0, [])
    ((name, run),) = server.runs.items()
    assert Path("runs/a/wandb_run_id.txt").read_text() == f"{name}\n"
    assert (name == "job-0") == by_agent
    assert run.exit_code == 0
    rows = [row for row in run.history if "outer_step" in row]
    assert len(rows) == 2
    assert rows[0]["_step"] < rows[1]["_step"]  # appended, nothing is overwritten


def test_a_job_that_fails_before_it_has_a_run_is_told_to_the_sweep(server: WandbServer) -> None:
    assert job("no run", **server.environment) == (1, ["ValueError: planted"])
    assert {name: (run.sweep, run.exit_code) for name, run in server.runs.items()} == {"job-0": (SWEEP, 1)}


def test_a_job_may_be_offline(here: Path) -> None:
    assert job("finished", WANDB_MODE="offline") == (0, [])
    records, rows = logged(here / "runs/a")
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.run_id, run.sweep_id) == ("job-0", SWEEP)
    assert any(row.get("outer/val_loss") == 2.0 for row in rows)


def test_a_job_may_be_untracked(here: Path) -> None:
    assert job("finished", WANDB_MODE="disabled") == (0, [])
    assert not Path("runs/a/wandb").exists()


# --- launch/sweep.sh ---


def write_sweep(**specs: Any) -> None:
    names = {name.replace("__", "."): spec for name, spec in specs.items()}
    content = {"name": "turns", "method": "grid", "command": COMMAND, "parameters": names}
    Path("sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_wrong_file_creates_nothing(server: WandbServer) -> None:
    write_sweep(task__trun={"values": [0]}, seeed={"values": [0]})
    done = run([f"{LAUNCH}/sweep.sh", "sweep.yaml"], **server.environment, PYTHON=str(forked_python(Path("bin"))))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "fds-dist: parameters.seeed: unknown key; did you mean seed?",
        "fds-dist: parameters.task.trun: unknown key; did you mean task.turn?",
    ]
    assert server.sweep is None


def test_what_is_created_is_what_the_file_says(server: WandbServer) -> None:
    Path("sweep.yaml").write_text(
        f"method: grid\ncommand: {json.dumps(COMMAND)}\n"
        "parameters: {hyperparameters.lr.step: {values: [1e-3, 2.5e-5]}, inner.clip_gradient: {value: 'null'}}\n"
    )
    done = run(
        [str(forked_python(Path("bin"))), "-m", "fds_dist", "sweep", "--create", "sweep.yaml"], **server.environment
    )
    assert (done.returncode, done.stdout) == (0, f"{ENTITY}/{PROJECT}/{SWEEP}\n")
    assert server.sweep == {
        "name": "sweep",
        "program": "fds_dist",
        "method": "grid",
        "command": COMMAND,
        "parameters": {
            "hyperparameters.lr.step": {"values": [1e-3, 2.5e-5]},  # numbers, which W&B's own reader takes for text
            "inner.clip_gradient": {"value": "null"},
        },
    }


def test_without_an_account_there_is_one_line(here: Path) -> None:
    write_sweep(task__turn={"values": [0]})
    done = run(
        [str(forked_python(Path("bin"))), "-m", "fds_dist", "sweep", "--create", "sweep.yaml"],
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("fds-dist: W&B did not create the sweep: No API key")


def test_another_machine_joins_and_takes_as_many_jobs_as_it_is_told(server: WandbServer) -> None:
    command = ["python", "-c", "import sys; open('told', 'a').write(sys.argv[1])", "${args_no_hyphens}"]
    server.create({"method": "grid", "command": command, "parameters": {"seed": {"values": [7, 8]}}})
    done = run([f"{LAUNCH}/sweep.sh", "--count", "1", f"{ENTITY}/{PROJECT}/{SWEEP}"], **server.environment)
    assert done.returncode == 0, done.stderr
    assert Path("told").read_text() == "seed=7"


@pytest.mark.slow
def test_an_agent_takes_three_jobs_to_the_end_and_a_fourth_is_reported_as_failed(server: WandbServer) -> None:
    fixed = {"seed": 5, "hyperparameters.lr.buckets": 2, "hyperparameters.lr.step": 0.2, "outer.optimizer": "adam"}
    write_sweep(task__turn={"values": [0, 1, 2, 3]}, **{name: {"value": value} for name, value in fixed.items()})
    done = run([f"{LAUNCH}/sweep.sh", "sweep.yaml"], **server.environment)
    assert done.returncode == 0, done.stderr
    assert server.jobs == [{"task.turn": turn, **fixed} for turn in range(4)]
    assert {name: (job.sweep, job.exit_code) for name, job in server.runs.items()} == {
        "job-0": (SWEEP, 0),
        "job-1": (SWEEP, 0),
        "job-2": (SWEEP, 0),
        "job-3": (SWEEP, 1),
    }
    histories = {}
    for run_dir in Path("runs").iterdir():
        lines = (run_dir / "history.jsonl").read_text().splitlines()
        histories[(run_dir / "wandb_run_id.txt").read_text().strip()] = [json.loads(line) for line in lines]
    for turn in range(4):
        for rank in range(2):
            seen = json.loads(Path(f"values/{turn}-{rank}.json").read_text())
            assert seen["turn"] == turn
            assert set(seen["overrides"]) == {f"{name}={value}" for name, value in {"task.turn": turn, **fixed}.items()}
        shown = server.runs[f"job-{turn}"].config
        assert shown.items() >= {"task.turn": turn, **fixed}.items()  # as the sweep knows them
        assert (shown["task"]["turn"], shown["hyperparameters"]["lr"]["buckets"]) == (turn, 2)  # as the run has them
    for turn in range(3):
        history, run_of_turn = histories[f"job-{turn}"], server.runs[f"job-{turn}"]
        assert [len(record["hyperparameters"]["lr"]) for record in history] == [2, 2]
        assert run_of_turn.summary["best_val_loss"] == min(record["val_loss"] for record in history)
        assert run_of_turn.summary["plain_steps"] > 0
        kinds = [name.partition("-")[0] for name in run_of_turn.artifacts]
        assert sorted(kinds) == ["report", "schedule"]  # W&B sends them at once, in either order


@pytest.mark.slow
def test_an_agent_that_is_stopped_ends_its_job_in_order(server: WandbServer) -> None:
    write_sweep(task__turn={"values": [4]})
    agent = subprocess.Popen(
        [f"{LAUNCH}/sweep.sh", "sweep.yaml"],
        env=clean_environment(NPROC="2", PYTHON=sys.executable, **server.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(job.history for job in server.runs.values()))
    agent.send_signal(signal.SIGTERM)
    out, err = agent.communicate(timeout=PATIENCE)
    assert agent.returncode == 0, err
    assert "interrupted; message: stopped in outer step 0" in out
    assert [job.exit_code for job in server.runs.values()] == [1]


@pytest.mark.slow
def test_the_same_file_runs_without_wandb(here: Path) -> None:
    write_sweep(task__turn={"values": [0, 3]}, seed={"value": 5})
    done = run([f"{LAUNCH}/sweep.sh", "--local", "sweep.yaml"])
    assert done.returncode == 1, done.stderr
    results = [json.loads(line) for line in Path("runs/sweeps/turns/results.jsonl").read_text().splitlines()]
    assert [(result["values"]["task.turn"], result["status"]) for result in results] == [(0, "finished"), (3, "failed")]
    assert "planted" in done.stdout  # why the second one failed
    assert all(json.loads(Path(f"values/0-{rank}.json").read_text())["turn"] == 0 for rank in range(2))
    assert not list(here.rglob("wandb*"))
