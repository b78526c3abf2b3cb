"""A run as Python sees it: `load_run`, its rows, and what can be done with a result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from blob_searches import CONFIG, optimize
from own_tasks import Blobs
from reported_runs import without_files
from torch import nn

import fds_dist


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_loads_without_torch_as_flat_rows(tmp_path: Path) -> None:
    result = optimize()
    loaded = fds_dist.load_run("runs/run")
    assert (loaded.schedule, loaded.best_schedule) == (result.schedule, result.best_schedule)
    assert (loaded.run_dir, loaded.history, loaded.config) == (result.run_dir, result.history, result.config)
    assert loaded.rows == result.rows
    assert len({tuple(row) for row in loaded.rows}) == 1  # the same columns in each row
    row, record = loaded.rows[1], result.history[1]
    assert (row["outer_step"], row["val_loss"], row["events"]) == (1, record.val_loss, "")
    assert row["hyperparameter/lr/1"] == record.hyperparameters["lr"][1]
    assert row["hypergradient/lr/0"] == record.hypergradients["lr"][0]
    assert row["step_size/lr/0"] == record.step_sizes["lr"][0]
    assert {type(value) for value in row.values()} == {int, float, str}
    code = "import sys; sys.modules['torch'] = None; import fds_dist; print(len(fds_dist.load_run('runs/run').rows))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"


def test_a_run_loads_while_it_goes_on() -> None:
    seen: list[tuple[int, bool, bool]] = []

    def look() -> None:
        run = fds_dist.load_run("runs/run")
        seen.append((len(run.rows), run.schedule is None, run.best_schedule is None))

    class Looking(fds_dist.Callback):
        def run_start(self, run: fds_dist.RunStart) -> None:
            look()

        def outer_step(self, record: fds_dist.OuterRecord) -> None:
            look()

    optimize("outer.steps=1", callbacks=[Looking()])
    assert seen == [(0, True, True), (1, False, False)]
    with pytest.raises(fds_dist.UserError, match="did you mean runs/run"):
        fds_dist.load_run("runs/rum")


class AtOnce(fds_dist.Callback):
    """Stops before the first outer step."""

    def run_start(self, run: fds_dist.RunStart) -> fds_dist.Stop:
        return fds_dist.Stop("made")


class Net(nn.Sequential):
    """A module handed in."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 3))


def make_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


@pytest.mark.parametrize(
    ("model", "name"), [(Net(), "Blobs-Net-2"), (make_net, "Blobs-make_net-2"), (lambda seed: Net(), "Blobs-2")]
)
def test_a_run_made_in_python_is_named_after_its_objects(model: Any, name: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("task", "name")}
    result = fds_dist.optimize(config, task=Blobs(), model=model, callbacks=[AtOnce()], progress=False)
    assert result.run_dir.name.startswith(name)


def test_a_run_made_in_python_is_taken_further_by_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    without_files(monkeypatch)
    model = Net()
    config = {key: value for key, value in CONFIG.items() if key not in ("task", "name")}
    result = fds_dist.optimize(config, ["outer.steps=1"], task=Blobs(), model=model, progress=False)
    assert isinstance(result.task, Blobs)
    assert result.model is model
    assert "task=" not in repr(result)
    again = fds_dist.optimize(resume=result, overrides=["outer.steps=2"], progress=False)
    assert [record.outer_step for record in again.history] == [0, 1]
    assert len(fds_dist.retrain(again, ["epochs=1"], progress=False).results) == 1
    assert fds_dist.export(again, "json") == again.schedule.to_json()
    assert fds_dist.report(again) == again.run_dir / "report/index.html"
    assert fds_dist.report([result, "runs/" + result.run_dir.name], "both") == Path("both/index.html")


def test_the_next_steps_of_a_run_made_in_python_are_python(capsys: pytest.CaptureFixture[str]) -> None:
    optimize("outer.steps=1", task=Blobs(), progress=True)
    out = capsys.readouterr().out
    assert "to train on all data: fds_dist.retrain(result)" in out
    assert "to export it: fds_dist.export('runs/run')" in out
