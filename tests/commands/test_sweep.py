"""Sweep files: every fault at once, the jobs that follow from a file, and running them without W&B."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_python import forked_python
from launching import PATIENCE, clean_environment, wait_for

from fds_dist.cli import main
from fds_dist.commands.sweep.file import read_sweep
from fds_dist.common.faults import UserError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))

CONFIG = {
    "task": {"name": "own_tasks:blobs"},
    "hyperparameters": {
        "lr": {"init": 0.05, "step": 0.02, "buckets": 2},
        "momentum": {"init": 0.5, "step": 0.1, "max": 0.99},
    },
    "outer": {"optimizer": "sign", "steps": 1},
}

STAND_IN = f"""#!{sys.executable}
# Takes the place of fds-dist: writes what `optimize` would, at once. Seed 1 fails or waits where a file says so.
import os, sys, time
from pathlib import Path
from fds_dist.tracking.records import OuterRecord
values = dict(argument.split("=", 1) for argument in sys.argv[3:])
seed = int(values["seed"])
if seed == 1 and Path("fail").exists():
    sys.exit("planted")
if seed == 1 and Path("wait").exists():
    Path("started").write_text(str(os.getpid()))
    time.sleep(60)
run_dir = Path(values["output_dir"]) / values["name"]
run_dir.mkdir()
losses = [0.5 / (seed + 1), float("nan"), 0.75]
records = [OuterRecord(step, 10, {{}}, {{}}, loss, 0.25, 1.0, 1, {{}}) for step, loss in enumerate(losses)]
(run_dir / "history.jsonl").write_text("".join(record.to_json() + "\\n" for record in records))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `config.yaml` and a stand-in of fds-dist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", "1")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    program = tmp_path / "fds-dist"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return tmp_path


def a_sweep(**changes: Any) -> dict[str, Any]:
    """A right one; None takes a key away."""
    content = {
        "name": "mine",
        "method": "grid",
        "parameters": {"seed": {"values": [0, 1, 2]}, "outer.optimizer": {"value": "adam"}},
        "command": ["./fds-dist", "optimize", "config.yaml", "${args_no_hyphens}"],
        **changes,
    }
    return {key: value for key, value in content.items() if value is not None}


def written(content: dict[str, Any]) -> Path:
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def parameters(**specs: Any) -> dict[str, Any]:
    return {"parameters": {name.replace("__", "."): spec for name, spec in specs.items()}}


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"metod": "grid"}, ["metod: unknown key; did you mean method?"]),
    ({"method": "gird"}, ["method: 'gird' is not a method; expected one of grid, random, bayes; did you mean grid?"]),
    ({"method": None}, ["method: is missing"]),
    ({"name": "a/b"}, ["name: 'a/b' is not a folder's name"]),
    ({"run_cap": 0}, ["run_cap: 0 is out of range"]),
    ({"run_cap": "3"}, ["run_cap: '3' is not a whole number"]),
    ({"method": "bayes"}, ["metric: is missing, and bayes needs one"]),
    (
        {"metric": {"name": "val_loss", "goal": "min"}},
        ["metric.name: 'val_loss' is not logged by any run", "metric.goal: 'min' is not a goal"],
    ),
    ({"parameters": {}}, ["parameters: {} is empty"]),
    ({"parameters": None}, ["parameters: is missing"]),
    (parameters(seed=3), ["parameters.seed: 3 is a whole number; expected {value: …}"]),
    (parameters(seed={}), ["parameters.seed: has no values"]),
    (parameters(seed={"values": []}), ["parameters.seed.values: [] is empty"]),
    (parameters(seed={"vals": [1]}), ["parameters.seed.vals: unknown key", "did you mean values?"]),
    (parameters(seed={"values": [1], "min": 0}), ["parameters.seed.min: does not belong here; expected values alone"]),
    (parameters(outer={"parameters": {"steps": {"value": 1}}}), ["parameters.outer: is nested", "outer.KEY"]),
    (parameters(sed={"values": [1]}), ["parameters.sed: unknown key; did you mean seed?"]),
    (
        parameters(hyperparameters__lr__bucket={"values": [1]}),
        ["parameters.hyperparameters.lr.bucket: unknown key; did you mean hyperparameters.lr.buckets?"],
    ),
    (
        parameters(hyperparameters__lrr__step={"values": [1.0]}),
        ["the config has no hyperparameter lrr; expected one of lr, momentum; did you mean hyperparameters.lr.step?"],
    ),
    (parameters(seed={"values": [0, -1]}), ["parameters.seed: -1 is out of range"]),
    (parameters(outer__optimizer={"values": ["sgn"]}), ["parameters.outer.optimizer: 'sgn' is not valid", "mean sign"]),
    (parameters(hyperparameters__lr__buckets={"value": 2.0}), ["lr.buckets: 2.0 is a decimal number"]),
    (parameters(inner__clip_gradient={"values": [None]}), ["values[0]: null would be changed", '"null", in quotes']),
    (
        {"method": "random", "run_cap": 1, **parameters(hyperparameters__momentum__init={"min": 0.5, "max": 1.5})},
        ["parameters.hyperparameters.momentum.init: 1.5 is out of range; expected a number of at most 0.99"],
    ),
    (
        parameters(seed={"min": 0, "max": 3}),
        ["parameters.seed: is a range, which a grid cannot have; expected {values: […]}"],
    ),
    (parameters(seed={"min": 3, "max": 0}), ["parameters.seed.min: 3 is out of range; expected a number below max"]),
    (parameters(seed={"min": 0.5, "max": 2}), ["parameters.seed: min 0.5 and max 2 are of two kinds"]),
    (parameters(seed={"min": 1}), ["parameters.seed.max: is missing"]),
    (
        parameters(seed={"distribution": "log_uniform", "min": 0, "max": 1}),
        ["parameters.seed.distribution: 'log_uniform' is not supported", "did you mean log_uniform_values?"],
    ),
    (
        parameters(seed={"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}),
        ["parameters.seed.min: 0.0 has no logarithm"],
    ),
    ({"command": None}, ["command: is missing"]),
    ({"command": ["./fds-dist", "optimize", "config.yaml"]}, ["command: has no ${args_no_hyphens}"]),
    (
        {"command": ["./fds-dist", "optimize", "config.yaml", "${args}"]},
        ["command: ${args} is not supported", "did you mean ${args_no_hyphens}?"],
    ),
    (
        {"command": ["no-such-program", "-m", "fds_dist", "optimize", "config.yaml", "${args_no_hyphens}"]},
        ["command: there is no program no-such-program"],
    ),
    (
        {"command": ["./fds-dist", "optimize", "${envvar:UNHEARD_OF}", "${args_no_hyphens}"]},
        ["command: the environment variable UNHEARD_OF is not set"],
    ),
    ({"command": ["./fds-dist", "retrain", "runs/a", "${args_no_hyphens}"]}, ["does not run `fds_dist optimize`"]),
    ({"command": ["./fds-dist", "optimize", "${args_no_hyphens}"]}, ["command: names no config"]),
    ({"command": ["./fds-dist", "optimize", "confg.yaml", "${args_no_hyphens}"]}, ["did you mean config.yaml?"]),
    (
        {"command": ["./fds-dist", "optimize", "--resume", "config.yaml", "${args_no_hyphens}"]},
        ["command: --resume is not allowed after optimize"],
    ),
    (
        {"command": ["./fds-dist", "optimize", "config.yaml", "${args_no_hyphens}", "seed=3"]},
        ["parameters.seed: has no effect: the command sets it after the values"],
    ),
    (
        {"command": ["./fds-dist", "optimize", "config.yaml", "outer.steps=0", "${args_no_hyphens}"]},
        ["command, outer.steps: 0 is out of range"],
    ),
]


@pytest.mark.parametrize(("changes", "parts"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_file_is_refused_with_what_would_be_right(
    here: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        read_sweep(written(a_sweep(**changes)))
    for part in parts:
        assert part in str(refused.value)


def test_all_faults_are_told_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = {"outer.optimizer": {"values": ["sgn", None]}, "task.sid": {"value": 6}, "seeed": {"value": 1}}
    config = {**CONFIG, "outer": {"stepz": 1}}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["sweep", "--check", str(written(a_sweep(method="gird", parameters=specs)))]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(line.removeprefix("fds-dist: ").partition(": ")[0] for line in err.splitlines()) == [
        "config.yaml, outer.stepz",
        "method",
        "parameters.outer.optimizer",
        "parameters.outer.optimizer.values[1]",
        "parameters.seeed",
        "parameters.task.sid",  # what the task's function does not take is found by building the first job
    ]


@pytest.mark.parametrize("text", ["", "- 1", "method: [grid", "method: grid\nmethod: random"])
def test_what_is_no_mapping_is_refused(here: Path, text: str) -> None:
    Path("sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.yaml"):
        read_sweep(Path("sweep.yaml"))


def test_a_file_that_is_not_there_is_refused_with_the_nearest(here: Path) -> None:
    written(a_sweep())
    with pytest.raises(UserError, match=r"no such file; did you mean sweep\.yaml"):
        read_sweep(Path("sweeep.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_files_are_right(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    sweep = read_sweep(path)
    assert main(["sweep", str(path), "--check"]) == 0
    assert "no mistakes found" in capsys.readouterr().out
    # W&B's own reader is YAML 1.1: it has to see the same numbers.
    assert yaml.safe_load(path.read_text()) == sweep.content
    assert f"launch/sweep.sh {path.relative_to(ROOT)}" in path.read_text()


def test_the_shipped_files_cover_the_methods() -> None:
    assert {yaml.safe_load(path.read_text())["method"] for path in SHIPPED} == {"grid", "random", "bayes"}


def test_a_grid_has_every_combination_once(here: Path) -> None:
    specs = {"seed": {"values": [0, 1]}, "outer.optimizer": {"values": ["sign", "adam"]}, "outer.steps": {"value": 1}}
    sweep = read_sweep(written(a_sweep(parameters=specs)))
    assert list(sweep.jobs()) == [
        {"seed": seed, "outer.optimizer": rule, "outer.steps": 1} for seed in (0, 1) for rule in ("sign", "adam")
    ]


def test_random_draws_stay_in_their_ranges_and_depend_on_the_jobs_number_alone(here: Path) -> None:
    specs = {
        "seed": {"values": [3, 4]},
        "hyperparameters.lr.buckets": {"min": 1, "max": 4},
        "hyperparameters.lr.step": {"min": 0.5, "max": 1.5},
        "hyperparameters.lr.init": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    }
    sweep = read_sweep(written(a_sweep(method="random", run_cap=1, parameters=specs)))
    draws = [values for _, values in zip(range(400), sweep.jobs(), strict=False)]
    assert {values["seed"] for values in draws} == {3, 4}
    assert {values["hyperparameters.lr.buckets"] for values in draws} == {1, 2, 3, 4}
    assert all(0.5 <= values["hyperparameters.lr.step"] <= 1.5 for values in draws)
    inits = [values["hyperparameters.lr.init"] for values in draws]
    assert all(1e-4 <= init <= 1.0 for init in inits)
    # Half of them are below the middle of the logarithms: 200, and 50 is five standard deviations.
    assert 150 < sum(init < 1e-2 for init in inits) < 250
    assert draws[:5] == [values for _, values in zip(range(5), sweep.jobs(), strict=False)]


# --- without W&B ---


def run_local(*options: str) -> int:
    return main(["sweep", "sweep.yaml", "--local", "--output-dir", "results", *options])


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("results/mine/results.jsonl").read_text().splitlines()]


def test_jobs_run_through_the_command_and_a_failed_one_does_not_stop_the_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(a_sweep())
    Path("fail").touch()
    assert run_local() == 1
    out = capsys.readouterr().out
    assert [(result["values"]["seed"], result["status"]) for result in results()] == [
        (0, "finished"),
        (1, "failed"),
        (2, "finished"),
    ]
    assert [result["best_val_loss"] for result in results()] == [0.5, None, 0.5 / 3]  # a NaN is never the best
    assert [result["best_val_accuracy"] for result in results()] == [0.25, None, 0.25]
    assert "failed with status 1" in out
    assert "planted" in out  # what the job said last
    assert Path("results/mine/job-2.log").read_text().strip() == "planted"
    rows = [line.split() for line in out.splitlines() if line.rstrip(" │").endswith(("finished", "failed"))]
    assert [row[1] for row in rows] == ["3", "1", "2"]  # the lowest loss first, failures last

    Path("fail").unlink()
    assert run_local() == 0
    assert [(result["values"]["seed"], result["status"]) for result in results()[3:]] == [(1, "finished")]
    assert results()[3]["run_dir"] == "results/mine/job-2-try-2"


def test_count_takes_the_first_jobs_and_more_later(here: Path) -> None:
    written(a_sweep())
    assert run_local("--count", "1") == 0
    assert run_local("--count", "2") == 0
    assert [result["job"] for result in results()] == [0, 1]


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.removeprefix("fds-dist: ").rstrip()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"method": "bayes", "metric": {"name": "best_val_loss", "goal": "minimize"}}, (), "method: bayes needs W&B"),
        ({"method": "random"}, (), "run_cap: is missing: random draws never end"),
        ({}, ("--count", "0"), "--count: 0 is out of range"),
    ],
)
def test_what_cannot_run_locally_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], options: tuple[str, ...], message: str
) -> None:
    written(a_sweep(**changes))
    assert run_local(*options) == 2
    assert refused(capsys).startswith(message)
    assert not Path("results").exists()


def test_another_sweep_of_the_same_name_does_not_mix_with_the_first(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(a_sweep())
    assert run_local("--count", "1") == 0
    written(a_sweep(parameters={"seed": {"values": [5]}}))
    capsys.readouterr()
    assert run_local() == 2
    assert refused(capsys).startswith("name: results/mine holds the results of another sweep")
    assert len(results()) == 1


# Slow: CI has SIGINT in the interrupted run of tests/test_cli.py, whose handler is the same.
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_job_and_keeps_what_is_done(here: Path, number: signal.Signals) -> None:
    written(a_sweep())
    Path("wait").touch()
    command = [
        str(forked_python(here / "bin")),
        "-m",
        "fds_dist",
        "sweep",
        "sweep.yaml",
        "--local",
        "--output-dir",
        "results",
    ]
    runner = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: Path("started").exists() and Path("started").read_text())
    runner.send_signal(number)
    _, err = runner.communicate(timeout=PATIENCE)
    assert (runner.returncode, err) == (130, b"")
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("started").read_text()), 0)  # left alone, the job would have gone on for a minute
    assert [result["job"] for result in results()] == [0]
    Path("wait").unlink()
    assert run_local() == 0
    assert [result["job"] for result in results()] == [0, 1, 2]


def test_a_real_search_runs_and_its_results_are_those_of_its_history(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
    command = [str(forked_python(here / "bin")), "-m", "fds_dist", "optimize", "config.yaml", "${args_no_hyphens}"]
    written(a_sweep(command=command, parameters={"hyperparameters.lr.buckets": {"value": 4}}))
    assert run_local() == 0
    (result,) = results()
    (record,) = map(json.loads, Path(result["run_dir"], "history.jsonl").read_text().splitlines())
    assert result["best_val_loss"] == record["val_loss"]
    assert len(record["hyperparameters"]["lr"]) == 4
