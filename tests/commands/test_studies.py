"""The commands around a search, from the command line: retrain, noise and compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fds_dist.cli import main
from fds_dist.commands import DONE, WRONG_INPUT
from fds_dist.commands.noise.command import noise
from fds_dist.common import console

CONFIG = """\
task: {name: digits, val_fraction: 0.5}
model: {name: mlp, hidden: [8]}
inner: {epochs: 1}
hyperparameters:
  lr: {init: 0.1, buckets: 2, step: 0.05}
  momentum: 0.9
outer: {optimizer: sign, steps: 2}
compare: {methods: [fds, greedy, random], seeds: 1, judge_seeds: 1}
name: study
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    return "config.yaml"


def test_a_run_is_retrained_from_its_folder(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", config]) == DONE
    assert main(["retrain", "runs/study", "epochs=2", "--seeds", "2"]) == DONE
    summary = json.loads(Path("runs/study/retrain/summary.json").read_text())
    assert "retrained 2 seeds" in capsys.readouterr().out
    assert summary["seeds"] == [0, 1]
    for seed in "01":
        epochs = Path(f"runs/study/retrain/{seed}/history.jsonl").read_text().splitlines()
        assert len(epochs) == 2


def test_a_run_is_retrained_with_its_best_schedule(config: str) -> None:
    main(["optimize", config])
    assert main(["retrain", "runs/study", "schedule=best"]) == DONE
    best, last = (
        json.loads(Path(f"runs/study/{name}.json").read_text())["hyperparameters"]["lr"][-1]
        for name in ("schedule_best", "schedule")
    )
    epoch = json.loads(Path("runs/study/retrain-best/0/history.jsonl").read_text().splitlines()[-1])
    assert epoch["hyperparameters"]["lr"] == best != last


def test_retraining_what_is_no_run_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retrain", "runs/nothing"]) == WRONG_INPUT
    assert main(["retrain"]) == WRONG_INPUT
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("RUN_DIR" in line for line in lines)


def test_noise_recommends_buckets_and_leaves_its_figures(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["noise", config, "--runs", "4", "--steps", "6"]) == DONE
    out = capsys.readouterr().out
    assert "Recommended buckets for 6 steps" in out
    assert {"noise.json", "noise.pdf", "noise.png"} <= {path.name for path in Path("runs/study").iterdir()}


def test_noise_says_how_many_runs_are_done(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    assert main(["noise", config, "--runs", "4", "--steps", "2"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" done,")[0] for line in lines if "done" in line] == [
        f"noise: {done} of 4 runs" for done in (1, 2, 3, 4)
    ]
    noise(config, runs=5, steps=2, progress=False)
    assert capsys.readouterr().out == ""


def test_compare_tells_what_each_method_needed(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", config, "compare.retrain_seeds=2"]) == DONE
    out = capsys.readouterr().out
    assert "mean of 2 trained on all training data" in out
    assert all(method in out for method in ("fds", "greedy", "random"))
    methods = {run["method"] for run in json.loads(Path("runs/study/compare.json").read_text())["runs"]}
    assert methods == {"fds", "greedy", "random"}
    for run in json.loads(Path("runs/study/compare.json").read_text())["runs"]:
        summary = json.loads(Path(f"runs/study/{run['method']}/retrained-0/summary.json").read_text())
        accuracies = run["retrained_accuracies"]
        assert summary["final_test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
