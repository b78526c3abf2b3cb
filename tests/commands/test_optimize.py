"""`optimize` from Python: what it takes, what it leaves in the run's folder, and how a run goes on after its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import run_jobs
from torch import nn

import fds_dist
from fds_dist.common.faults import UserError

Numbers = list[dict[str, Any]]

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 1},
    "hyperparameters": {
        "lr": {"init": 0.05, "step": 0.02, "buckets": 3},
        "momentum": {"init": 0.5, "step": 0.1},
    },
    "outer": {"optimizer": "sign", "steps": 3, "tolerance": 1e-9},
    "name": "run",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def optimize(config: Any = None, *overrides: str, **arguments: Any) -> fds_dist.RunResult:
    return fds_dist.optimize(config, overrides, progress=False, **arguments)


def lines(run_dir: str | Path) -> Numbers:
    return [json.loads(line) for line in (Path(run_dir) / "history.jsonl").read_text().splitlines()]


def numbers(run_dir: str | Path) -> Numbers:
    """The history without what depends on the clock and the number of ranks."""
    measured = ("seconds", "world_size", "rank_seconds", "rank_peak_bytes")
    return [{key: value for key, value in line.items() if key not in measured} for line in lines(run_dir)]


# --- a whole run ---


def test_a_run_leaves_what_the_contract_names(tmp_path: Path) -> None:
    result = optimize(CONFIG)
    folder = Path("runs/run")
    assert result.run_dir == folder
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "environment.json", "history.jsonl", "curves.jsonl", "checkpoints"),
        *("schedule.json", "schedule_best.json", "schedule_last.json"),
    }
    for number, line in enumerate(lines(folder)):
        assert list(line)[:8] == [
            *("outer_step", "horizon", "hyperparameters", "hypergradients"),
            *("val_loss", "val_accuracy", "seconds", "world_size"),
        ]
        assert (line["outer_step"], line["horizon"], line["world_size"]) == (number, 4, 1)
    assert lines(folder)[0]["hyperparameters"] == {"lr": [0.05] * 3, "momentum": [0.5]}
    assert [record.val_loss for record in result.history] == [line["val_loss"] for line in lines(folder)]
    assert not result.converged

    assert fds_dist.load_schedule(folder) == result.schedule
    assert result.schedule.fixed == {"weight_decay": 0.0}
    last, steps = lines(folder)[-1], lines(folder)[-1]["step_sizes"]
    for name, values in result.schedule.values.items():  # what follows from the last line by the paper's rule
        expected = zip(last["hyperparameters"][name], last["hypergradients"][name], steps[name], strict=True)
        assert list(values) == [value - step if gradient > 0 else value + step for value, gradient, step in expected]
    best = min(lines(folder), key=lambda line: line["val_loss"])
    assert result.best_schedule is not None
    assert {name: list(values) for name, values in result.best_schedule.values.items()} == best["hyperparameters"]

    environment = json.loads((folder / "environment.json").read_text())
    shown = {key: environment[key] for key in ("torch", "world_size", "device")}
    assert shown == {"torch": torch.__version__, "world_size": 1, "device": "cpu"}

    script = "import sys; sys.modules['torch'] = None; import fds_dist; print(fds_dist.load_schedule('runs/run').at(3))"
    printed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout == f"{result.schedule.at(3)}\n"


def test_the_best_schedule_has_the_horizon_of_the_run_that_reached_it() -> None:
    result = optimize(CONFIG, "inner.epochs=[4,0.75]", "outer.steps=2")
    best, last = result.history
    assert best.val_loss < last.val_loss and best.horizon == 16 and last.horizon == 3  # three steps learn little
    assert result.best_schedule == fds_dist.load_schedule(result.run_dir / "schedule_best.json")
    assert result.best_schedule is not None and result.best_schedule.horizon == best.horizon
    assert result.schedule.horizon == last.horizon


def test_the_resolved_config_gives_the_same_run_again() -> None:
    first = optimize(CONFIG, "seed=3", "tangents.clip_hvp=1.0")
    again = optimize(first.run_dir / "config.yaml", "name=again")
    assert again.run_dir == Path("runs/again")
    assert numbers(again.run_dir) == numbers(first.run_dir)
    other = optimize(first.run_dir / "config.yaml", "seed=4", "name=other")
    assert numbers(other.run_dir) != numbers(first.run_dir)


def test_datasets_of_pairs_and_a_plain_module_are_enough() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=random)
    pairs = [(row, int(row.sum() > 0)) for row in x]
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    task = fds_dist.task_from_datasets(pairs[:30], pairs[30:], batch_size=10)
    config = {
        "hyperparameters": {"lr": {"init": 0.1, "step": 0.1, "buckets": 3}},
        "outer": {"optimizer": "sign", "steps": 2},
    }
    result = optimize(config, task=task, model=model)
    assert [record.horizon for record in result.history] == [3, 3]
    assert all(any(record.hypergradients["lr"]) for record in result.history)
    assert result.run_dir.name.startswith("TensorTask-")


def test_functions_of_the_current_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "of_my_own.py").write_text(
        "import own_tasks\nfrom torch import nn\n"
        "def task(channels): return own_tasks.Blobs(channels=channels)\n"
        "def model(seed): return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))\n"
    )
    own = {"task": {"name": "of_my_own:task", "channels": 1}, "model": {"name": "of_my_own:model"}}
    by_name = optimize({**CONFIG, **own})
    by_object = optimize(
        {**CONFIG, "name": "other", "task": {"name": "own_tasks:blobs", "channels": 1}},
        model=lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
    )
    assert numbers(by_name.run_dir) == numbers(by_object.run_dir)
    assert [list(line["hypergradients"]) for line in lines(by_name.run_dir)] == [["lr", "momentum"]] * 3


def test_an_early_stop_keeps_the_schedule_that_it_stopped_at() -> None:
    result = optimize(CONFIG, "outer.tolerance=0.9")
    assert result.converged
    assert len(result.history) == 1
    assert result.history[0].events
    moved = {name: list(values) for name, values in fds_dist.load_schedule(result.run_dir).values.items()}
    assert moved != result.history[0].hyperparameters
    assert all(0.03 <= value <= 0.07 for value in moved["lr"])  # 0.05 and one step of 0.02

    stricter = optimize(None, "outer.tolerance=1e-9", resume=result.run_dir)
    assert len(stricter.history) == 3
    assert stricter.history[1].hyperparameters == moved


# --- resuming ---


def planted(tmp_path: Path, error: str) -> dict[str, Any]:
    """A config whose run raises in outer step 1, until the file is gone."""
    switch = tmp_path / "switch"
    switch.write_text(error)
    return {**CONFIG, "task": {"name": "own_tasks:stopping", "switch": str(switch)}}


@pytest.fixture
def uninterrupted(tmp_path: Path) -> Numbers:
    config = {**planted(tmp_path, "OSError"), "name": "uninterrupted"}
    (tmp_path / "switch").unlink()
    return numbers(optimize(config).run_dir)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (OSError, "failed")])
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, uninterrupted: Numbers, error: type[BaseException], status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match="planted"):
        fds_dist.optimize(planted(tmp_path, error.__name__))
    ended, next_step = capsys.readouterr().out.splitlines()[-2:]
    assert ended.startswith(f"{status}; message: ")
    assert next_step.endswith("optimize --resume runs/run")
    assert numbers("runs/run") == uninterrupted[:1]
    assert fds_dist.load_schedule("runs/run").horizon == 4
    (tmp_path / "switch").unlink()
    result = optimize(resume="runs/run")
    assert numbers("runs/run") == uninterrupted
    assert [record.outer_step for record in result.history] == [0, 1, 2]


def test_a_run_of_two_ranks_goes_on_as_one_process(tmp_path: Path, uninterrupted: Numbers) -> None:
    folder = tmp_path / "two"
    (first, second) = run_jobs(folder, 2, [{"config": planted(tmp_path, "KeyboardInterrupt")}])
    assert [end[0]["raised"] for end in (first, second)] == ["KeyboardInterrupt"] * 2
    (tmp_path / "switch").unlink()
    optimize(resume=folder / "runs/run")
    assert numbers(folder / "runs/run") == uninterrupted
    assert [line["world_size"] for line in lines(folder / "runs/run")] == [2, 1, 1]


def test_a_run_that_stopped_in_its_first_step_starts_anew() -> None:
    optimize(CONFIG, "name=whole")
    run = optimize(CONFIG, "outer.steps=1")
    for path in [*run.run_dir.glob("checkpoints/*"), run.run_dir / "schedule.json"]:
        path.unlink()  # what the first outer step leaves at its end
    optimize(None, "outer.steps=3", resume=run.run_dir)
    assert numbers(run.run_dir) == numbers("runs/whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "outer.steps=3",
            "note: nothing left to do: all 3 outer steps are done (for more: outer.steps=6)\n",
        ),
        (
            "outer.tolerance=0.9",
            "note: nothing left to do: after outer step 0 every step was below outer.tolerance=0.9\n",
        ),
    ],
)
def test_resuming_a_finished_run_says_so_and_changes_nothing(
    override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = optimize(CONFIG, override)
    before = contents(first.run_dir)
    again = fds_dist.optimize(resume=first.run_dir)
    assert capsys.readouterr().out == told
    assert contents(first.run_dir) == before
    assert again == first


def test_resuming_with_more_outer_steps_goes_on() -> None:
    optimize(CONFIG, "outer.steps=5", "name=long")
    short = optimize(CONFIG, "outer.steps=2")
    optimize(None, "outer.steps=5", resume=short.run_dir)
    assert numbers(short.run_dir) == numbers("runs/long")
    assert "steps: 5" in (short.run_dir / "config.yaml").read_text()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_with_a_note(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = optimize(CONFIG, "outer.steps=3")
    expected = numbers(run.run_dir)
    newest = max(run.run_dir.glob("checkpoints/*"))
    content = newest.read_text()
    newest.write_text(content[:40] if damage == "cut" else content.replace("horizon", "horizom"))
    fds_dist.optimize(resume=run.run_dir)
    out = capsys.readouterr().out.splitlines()
    assert "resumed at 2" in out[0]
    assert any(line.startswith(f"note: {newest} is damaged") for line in out)
    assert numbers(run.run_dir) == expected


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["hyperparameters.lr.buckets=1", "hyperparameters.momentum.buckets=3"], ["lr", "momentum"]),
        (["hyperparameters.momentum=0.5"], ["momentum"]),
        (["hyperparameters.weight_decay={init: 0, step: 0.1}"], ["weight_decay"]),
    ],
)
def test_what_the_checkpoint_holds_cannot_change(overrides: list[str], keys: list[str]) -> None:
    run = optimize(CONFIG, "outer.steps=1")
    with pytest.raises(UserError) as caught:
        optimize(None, "outer.steps=3", *overrides, resume=run.run_dir)
    assert [fault.key for fault in caught.value.faults] == [f"hyperparameters.{key}" for key in keys]


def test_a_new_run_never_touches_another_ones_folder() -> None:
    first, second = optimize(CONFIG, "outer.steps=1"), optimize(CONFIG, "outer.steps=1")
    assert (first.run_dir, second.run_dir) == (Path("runs/run"), Path("runs/run-2"))
    assert len(lines(first.run_dir)) == 1
