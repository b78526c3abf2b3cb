"""Vector hyperparameters through the commands: what files hold, what tables show, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reported_runs import page_of
from torch import Tensor, nn
from torch.nn import functional as F

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.history import read_history
from fds_dist.tracking.records import InnerBlock, OuterRecord, inner_metrics, outer_metrics

CLASSES = 3
START = [1.0, 0.5, 2.0]
VECTOR = {"init": START, "size": CLASSES, "buckets": 2, "step": 0.1, "min": 0.0, "max": 4.0}


def weighted(output: Tensor, target: Tensor, h: dict[str, Tensor]) -> Tensor:
    assert h["class_weights"].shape == (CLASSES,)
    weights = h["class_weights"][target]
    return (weights * F.cross_entropy(output, target, reduction="none")).sum() / weights.sum()


def task() -> Any:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=generator), torch.randint(CLASSES, (80,), generator=generator)
    return fds_dist.task_from_datasets(
        (x, y), batch_size=8, loss=weighted, val_loss=F.cross_entropy, test=(x[:16], y[:16])
    )


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    hyperparameters = {"lr": {"init": 0.1, "step": 0.05, "buckets": 2, "min": 0.01}, "class_weights": VECTOR}
    settings: dict[str, Any] = {
        "inner": {"epochs": 1},
        "hyperparameters": hyperparameters,
        "outer": {"optimizer": "sign", "steps": 2},
    }
    return {**settings, "output_dir": str(folder), "name": "run", **changes}


def model(seed: int) -> nn.Module:
    return nn.Linear(5, CLASSES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fds_dist.RunResult:
    folder = tmp_path_factory.mktemp("vectors")
    return fds_dist.optimize(config(folder), task=task(), model=model, progress=False)


def test_files_nest_the_numbers_of_a_bucket_and_leave_single_numbers_flat(run: fds_dist.RunResult) -> None:
    stored = json.loads((run.run_dir / "schedule.json").read_text())["hyperparameters"]
    assert [len(bucket) for bucket in stored["class_weights"]] == [CLASSES, CLASSES]
    assert all(isinstance(value, float) for value in stored["lr"])
    schedule = fds_dist.load_schedule(run.run_dir)
    assert schedule == run.schedule and schedule == Schedule.from_json(schedule.to_json())
    assert schedule.at(0)["class_weights"] == tuple(stored["class_weights"][0])
    assert schedule.stretch(100).at(99)["class_weights"] == tuple(stored["class_weights"][1])
    first, _ = read_history(run.run_dir / "history.jsonl")
    assert first.hyperparameters["class_weights"] == [START, START]
    assert all(number != 0 for bucket in first.hypergradients["class_weights"] for number in bucket)
    assert schedule.at(0)["class_weights"] != tuple(START)


def test_the_schedule_drives_the_optimizer_and_gives_the_loss_its_vector(run: fds_dist.RunResult) -> None:
    driver = run.schedule.attach(torch.optim.SGD(model(0).parameters(), lr=0.1))
    assert driver.values["class_weights"] == run.schedule.at(0)["class_weights"]


def test_exports_have_a_column_per_number_and_a_snippet_that_runs(run: fds_dist.RunResult) -> None:
    header, first, *_ = fds_dist.export(run.run_dir, "csv").splitlines()
    names = [f"class_weights[{index}]" for index in range(CLASSES)]
    columns = dict(zip(header.split(","), first.split(","), strict=True))
    assert [float(columns[name]) for name in names] == [*run.schedule.at(0)["class_weights"]]
    scope: dict[str, Any] = {}
    exec(fds_dist.export(run.run_dir, "snippet"), scope)
    assert scope["value_at"]("class_weights", 9) == run.schedule.at(9)["class_weights"]


def test_the_report_check_and_retrain_take_vectors(run: fds_dist.RunResult) -> None:
    assert "class_weights[1][2]" in page_of(run.run_dir).read_text()
    (result,) = fds_dist.retrain(run.run_dir, ["epochs=1"], task=task(), model=model).results
    assert result.epochs[-1].hyperparameters["class_weights"] == run.schedule.at(9)["class_weights"]
    checked = fds_dist.check(config(run.run_dir), task=task(), model=model)
    assert sum(len(rank.elements) for rank in checked.report.ranks) == 2 + 2 * CLASSES


def test_verify_agrees(tmp_path: Path) -> None:
    assert fds_dist.verify(config(tmp_path), steps=4, task=task(), model=model).verification.passed


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("lr", {"init": 0.1, "step": 0.1, "size": 2}, "hyperparameters.lr.size: 2 is not possible"),
        (
            "class_weights",
            VECTOR | {"init": [1.0, 2.0]},
            "a list of 2 is not possible; expected a number, or a list of 3",
        ),
        ("class_weights", VECTOR | {"init": [1.0, 2.0, 9.0]}, "9 is out of range"),
        ("class_weights", VECTOR | {"size": 1}, "a list of 3 is not possible; expected a number"),
        ("class_weights", VECTOR | {"size": 0}, "hyperparameters.class_weights.size: 0"),
        ("class_weights", VECTOR | {"init": [1.0, 2.0, 0.0], "scale": "log"}, "0 has no logarithm"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    hyperparameters = {**config(tmp_path)["hyperparameters"], name: changes}
    with pytest.raises(UserError) as caught:
        fds_dist.optimize(config(tmp_path, hyperparameters=hyperparameters), task=task(), model=model, progress=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_noise_names_a_vector_that_it_cannot_measure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class_weights\.size: 3: noise is measured of single numbers"):
        fds_dist.noise(config(tmp_path), runs=4, task=task(), model=model)


def test_a_schedule_with_ragged_lists_or_a_vector_for_the_optimizer_is_refused(run: fds_dist.RunResult) -> None:
    content = json.loads(run.schedule.to_json())
    for name, row in (("class_weights", [[1.0, 2.0], [1.0]]), ("class_weights", [[]]), ("lr", [[0.1, 0.2]])):
        changed = {**content, "hyperparameters": {**content["hyperparameters"], name: row}}
        with pytest.raises(UserError, match=r"schedule: hyperparameters"):
            Schedule.from_json(json.dumps(changed))


def test_dashboards_get_few_numbers_of_a_long_vector() -> None:
    long, short = tuple(map(float, range(100))), (1.0, 2.0)
    block = InnerBlock(0, range(1), 1, 0, 0.5, {"weights": long, "mix": short, "lr": 0.1})
    metrics = inner_metrics(block)
    assert metrics["inner/weights/mean"] == 49.5 and metrics["inner/weights/max"] == 99.0
    assert metrics["inner/mix/1"] == 2.0 and metrics["inner/lr"] == 0.1 and len(metrics) == 2 + 3 + 2 + 1
    record = OuterRecord(0, 1, {"mix": [short]}, {"mix": [[float("nan"), 3.0]]}, 1.0, None, 1.0, 1)
    metrics = outer_metrics(record)
    assert metrics["hyperparameter/mix/0/1"] == 2.0 and "hypergradient/mix/0/0" not in metrics
    again = OuterRecord.from_json(record.to_json())
    assert str(again.hypergradients["mix"]) == "[[nan, 3.0]]"
