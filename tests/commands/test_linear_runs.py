"""`shape: linear` through the commands: one search's files, its ranks, what trains with its result, what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from launching import start_ranks
from torch import nn

import fds_dist
from fds_dist.commands.compare.rivals.staircase import cosine_buckets
from fds_dist.commands.export import snippet
from fds_dist.commands.report.figures.schedules import schedules
from fds_dist.commands.report.reading import read_run
from fds_dist.common.faults import UserError
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import SHAPES, Linear
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tracking.records import OuterRecord, RunEnd

STEPS = 10
LEARNED = {
    "lr": {"init": 0.1, "step": 0.03, "buckets": 3, "shape": "linear", "per_group": {"head": {"buckets": 1}}},
    "momentum": {"init": [0.5, 0.6, 0.4, 0.7], "step": 0.1, "buckets": 4, "shape": "linear"},
    "weight_decay": {"init": 1e-3, "step": 1e-4, "buckets": 2},
}  # fmt: skip


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "task": {"name": "own_tasks:blobs"},
        "inner": {"steps": STEPS, "groups": {"head": "bias", "body": ".*"}},
        "hyperparameters": LEARNED,
        "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
        "consistency": {"witness": "off"},
        "output_dir": str(folder),
        "name": "run",
    }
    return {**settings, **changes}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fds_dist.RunResult:
    return fds_dist.optimize(config(tmp_path_factory.mktemp("lines")), progress=False)


def test_files_carry_the_shape_of_what_has_several_knots(run: fds_dist.RunResult) -> None:
    content = json.loads((run.run_dir / "schedule.json").read_text())
    assert content["shape"] == {"lr.body": "linear", "momentum": "linear"} == run.schedule.shapes
    assert fds_dist.load_schedule(run.run_dir) == run.schedule
    assert yaml.safe_load((run.run_dir / "config.yaml").read_text())["hyperparameters"]["weight_decay"]["shape"] == (
        "constant"
    )
    values = [run.schedule.at(step)["momentum"] for step in range(STEPS)]
    assert len(set(values)) > 4  # knots


def test_every_export_has_the_values_of_every_step(run: fds_dist.RunResult) -> None:
    for horizon in (STEPS, 23):
        schedule = run.schedule.stretch(horizon)
        expected = [schedule.at(step) for step in range(horizon)]
        rows = list(csv.DictReader(io.StringIO(fds_dist.export(run.run_dir, "csv", horizon=horizon))))
        assert [{name: float(row[name]) for name in expected[0]} for row in rows] == expected
        assert Schedule.from_json(fds_dist.export(run.run_dir, "json", horizon=horizon)) == schedule
        scope: dict[str, Any] = {}
        exec(fds_dist.export(run.run_dir, "snippet", horizon=horizon), scope)
        assert [{name: scope["value_at"](name, step) for name in expected[0]} for step in range(horizon)] == expected
        assert scope["value_at"]("momentum", 10**6) == expected[-1]["momentum"]


def test_the_snippet_interpolates_vectors_and_a_single_step() -> None:
    schedule = Schedule(5, {"mix": ((0.0, 1.0), (1.0, 0.5)), "lr": (0.1, 0.3)}, {}, {"name": "sgd"}, {"mix": "linear"})
    scope: dict[str, Any] = {}
    exec(snippet(schedule), scope)
    assert [tuple(scope["value_at"]("mix", step)) for step in range(5)] == [schedule.at(s)["mix"] for s in range(5)]
    assert [scope["value_at"]("lr", step) for step in range(5)] == [schedule.at(step)["lr"] for step in range(5)]
    exec(snippet(schedule.stretch(1)), scope)
    assert tuple(scope["value_at"]("mix", 0)) == (0.0, 1.0)


def test_the_driver_and_retrain_set_the_value_of_every_step(run: fds_dist.RunResult) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(fds_dist.parameter_groups(module, run.schedule), lr=0.1, momentum=0.9)
    driver = run.schedule.attach(optimizer)
    for step in range(STEPS):
        values = run.schedule.at(step)
        assert [group["lr"] for group in optimizer.param_groups] == [values["lr.head"], values["lr.body"]]
        assert all(group["momentum"] == values["momentum"] for group in optimizer.param_groups)
        optimizer.step()
        driver.step()
    (result,) = fds_dist.retrain(run.run_dir, ["epochs=2"]).results
    last = run.schedule.stretch(len(result.epochs) * 4).at(len(result.epochs) * 4 - 1)
    assert result.epochs[-1].hyperparameters == pytest.approx(last)


def test_the_report_draws_lines_between_knots_and_stairs_of_buckets(run: fds_dist.RunResult) -> None:
    from matplotlib import pyplot

    contents = read_run(run.run_dir)
    lines: dict[str, Any] = {}
    for panel in schedules([contents]):
        axes = pyplot.figure().add_subplot()
        panel.draw(axes)
        lines[axes.get_title()] = next(line.get_xydata() for line in axes.lines if "best" in str(line.get_label()))
    pyplot.close("all")
    best = contents.best
    assert best is not None
    momentum, decay = best.hyperparameters["momentum"], best.hyperparameters["weight_decay"]
    ends = [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1]
    assert lines["momentum"][:, 0].tolist() == ends and lines["momentum"][::2, 1].tolist() == momentum
    assert lines["weight_decay"].tolist() == [[0, decay[0]], [0.5, decay[0]], [0.5, decay[1]], [1, decay[1]]]
    plan = contents.plan()
    assert plan is not None and plan.starts == (0, 0, 1, 5, 0, 1, 4, 7, 0, 5)  # knots of body every 4.5 steps
    axes = run.schedule.plot()
    drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn["momentum"] == [run.schedule.at(step)["momentum"] for step in range(STEPS)]
    assert len(drawn["weight_decay"]) == STEPS + 1 and "4 (linear)" in run.schedule._repr_html_()
    pyplot.close("all")


def test_the_same_bits_on_one_and_on_two_ranks(run: fds_dist.RunResult, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(tmp_path), sort_keys=False))
    command = ["-m", "fds_dist", "optimize", "config.yaml"]
    for ended in start_ranks(command, 2, [tmp_path]):
        assert ended.status == 0, ended.err
    numbers = [
        [(record.hyperparameters, record.hypergradients, record.val_loss) for record in records]
        for records in (history(run.run_dir), history(tmp_path / "run"))
    ]
    assert numbers[0] == numbers[1]


def history(folder: Path) -> list[OuterRecord]:
    return [OuterRecord.from_json(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_check_verify_and_noise_take_knots(run: fds_dist.RunResult, tmp_path: Path) -> None:
    plan = fds_dist.check(config(tmp_path)).report.plan
    assert plan.starts == (0, 0, 1, 5, 0, 1, 4, 7, 0, 5)
    assert fds_dist.verify(config(tmp_path), steps=6).verification.passed
    report = fds_dist.noise(config(tmp_path), runs=4, steps=5, progress=False).report
    assert {"lr.head", "lr.body", "momentum"} <= set(report.recommended_buckets)


def test_compare_searches_the_same_knots() -> None:
    space = HyperparameterSpace((Hyperparameter("lr", 0.1, 0.1, 3, shape="linear"),))
    assert cosine_buckets(space, [0.4]) == pytest.approx([0.4, 0.2, 0.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr": {"init": 0.1, "step": 0.1, "shape": "linear"}},
            "hyperparameters.lr.shape: linear is not possible with 1 bucket: it needs a knot at each end; expected "
            "buckets of at least 2, or shape: constant",
        ),
        (
            {"lr": {"init": 0.1, "step": 0.1, "buckets": 3, "per_group": {"head": {"buckets": 1, "shape": "linear"}}}},
            "hyperparameters.lr.per_group.head.shape: linear is not possible with 1 bucket",
        ),
        (
            {"lr": {"init": 0.1, "step": 0.1, "shape": "cubic"}},
            "hyperparameters.lr.shape: 'cubic' is not valid; expected constant or linear",
        ),
        (
            {"lr": {"init": 0.1, "step": 0.1, "buckets": 11, "shape": "linear"}},
            "hyperparameters.lr.buckets: 11 is more buckets than inner steps: the shortest horizon has 10",
        ),
    ],
)
def test_what_cannot_be_is_one_line(changes: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fds_dist.optimize(config(tmp_path, hyperparameters=changes), progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_is_not_resumed_with_another_shape(run: fds_dist.RunResult) -> None:
    with pytest.raises(UserError, match=r"hyperparameters\.momentum: cannot change when a run is resumed"):
        fds_dist.optimize(None, ["hyperparameters.momentum.shape=constant"], resume=run.run_dir, progress=False)


def test_dashboards_get_the_place_of_each_knot(run: fds_dist.RunResult) -> None:
    places = run.schedule.places
    assert places["momentum"] == [(0.0, 0.0), (1 / 3, 1 / 3), (2 / 3, 2 / 3), (1.0, 1.0)]
    end = RunEnd("finished", "", run.schedule.values, None, None, None, run.run_dir, places=places)
    assert end.place("momentum", 1) == (1 / 3, 1 / 3) and end.place("weight_decay", 1) == (0.5, 1.0)
    assert replace(end, places={}).place("weight_decay", 1) == (0.5, 1.0)


def test_a_snippet_refuses_a_shape_that_it_cannot_say(run: fds_dist.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "bent", Linear)
    bent = replace(run.schedule, shapes={"momentum": "bent"})
    with pytest.raises(UserError, match="schedule: shape: a snippet cannot say bent; expected --format csv or json"):
        snippet(bent)
