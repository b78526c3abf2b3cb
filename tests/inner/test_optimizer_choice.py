"""`inner.optimizer` from the config to the run: its forms, its refusals, and the witness on each optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import image_task, mlp

import fds_dist
from fds_dist.build import Build, build
from fds_dist.common.domain import BELOW_ONE
from fds_dist.common.faults import UserError
from fds_dist.config import dump_config, load_config, read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS

LR = {"lr": {"init": 0.01, "step": 0.01}}


def config(optimizer: Any = "sgd", hyperparameters: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    inner = {"optimizer": optimizer, "steps": 5, **sections.pop("inner", {})}
    return {"task": {"name": "digits"}, "inner": inner, "hyperparameters": hyperparameters or LR, **sections}


def built(source: dict[str, Any], world_size: int = 1) -> Build:
    task: Any = image_task(mlp)
    return build(read_draft(source), LaunchEnvironment(world_size=world_size), task)


def refusal(source: dict[str, Any], world_size: int = 1) -> str:
    with pytest.raises(UserError) as refused:
        built(source, world_size)
    return str(refused.value)


@pytest.mark.parametrize(
    ("optimizer", "inner", "name", "options"),
    [
        ("sgd", {}, "sgd", {}),
        ("sgd", {"nesterov": True}, "sgd", {"nesterov": True}),
        ({"name": "adamw"}, {}, "adamw", {}),
        ({"name": "rmsprop", "centered": True}, {}, "rmsprop", {"centered": True}),
        ({"name": "muon", "nesterov": False}, {}, "muon", {"nesterov": False}),
        ("some.module:Name", {}, "some.module:Name", {}),
        ({"name": "some.module:Name", "rate": 3}, {}, "some.module:Name", {"rate": 3}),
    ],
)
def test_each_form_is_read_and_written_back(
    tmp_path: Path, optimizer: Any, inner: dict[str, Any], name: str, options: dict[str, Any]
) -> None:
    read = load_config(config(optimizer, inner=inner))
    assert (read.inner.optimizer_name, read.inner.optimizer_options) == (name, options)
    (tmp_path / "config.yaml").write_text(dump_config(read))
    assert load_config(tmp_path / "config.yaml") == read


@pytest.mark.parametrize(
    ("optimizer", "inner", "line"),
    [
        ({"name": "rmsprop", "nesterov": True}, {}, "inner.optimizer.nesterov: unknown switch; expected centered"),
        ({"name": "lion", "x": 1}, {}, "inner.optimizer.x: unknown switch; expected nothing beside the name"),
        (
            {"name": "rmsprop", "centered": 1},
            {},
            "inner.optimizer.centered: 1 is a whole number; expected true or false",
        ),
        ({"name": "adamm"}, {}, "inner.optimizer.name: 'adamm' is not valid; expected sgd, adam, adamw, rmsprop"),
        ({"centered": True}, {}, "inner.optimizer.name: is missing"),
        (["sgd"], {}, "inner.optimizer: ['sgd'] is a list; expected sgd, adam, adamw"),
        ("lion", {"nesterov": True}, "inner.nesterov: lion has no such switch, or it is off there"),
        (
            {"name": "sgd", "nesterov": False},
            {"nesterov": True},
            "inner.nesterov: sgd has no such switch, or it is off",
        ),
    ],
)
def test_a_form_that_is_wrong(optimizer: Any, inner: dict[str, Any], line: str) -> None:
    (fault,) = read_draft(config(optimizer, inner=inner)).faults
    assert str(fault).startswith(line)


def test_bounds_are_the_optimizers_own_where_its_names_are_not_common() -> None:
    """`alpha` may be a loss's own, without bounds; of rmsprop it is below 1."""
    learned = {**LR, "alpha": {"init": 0.9, "step": 0.1}}
    assert built(config("rmsprop", learned)).problem.space.learned[1].bounds == (0.0, BELOW_ONE)
    free = {**LR, "alpha": {"init": 0.9, "step": 0.1, "max": None}}
    assert built(config("rmsprop", free)).problem.space.learned[1].bounds == (0.0, float("inf"))
    above = {**LR, "alpha": {"init": 1.5, "step": 0.1}}
    assert "hyperparameters.alpha.init: 1.5 is out of range" in refusal(config("rmsprop", above))
    assert "hyperparameters.alpha: 1.5 is out of range" in refusal(config("rmsprop", {**LR, "alpha": 1.5}))
    closer = {**LR, "momentum": {"init": 0.9, "step": 0.1}}
    assert built(config("schedule_free_sgd", closer)).problem.space.learned[1].bounds == (0.01, BELOW_ONE)
    own = {**LR, "drag": {"init": 0.2, "step": 0.1}}
    assert built(config("own_optimizers:HeavyBall", own)).problem.space.learned[1].bounds == (0.0, 1.0)


@pytest.mark.parametrize("name", ["lamb", "muon", "own_optimizers:Normalized"])
def test_whole_parameters_and_a_data_axis_do_not_go_together(name: str) -> None:
    line = refusal(config(name, mesh={"data": 2}), world_size=2)
    assert (
        line
        == f"mesh.data: 2 ranks would cut parameters, which {name} needs whole; expected 1 with inner.optimizer {name}"
    )


def test_a_users_optimizer_is_tried_before_training() -> None:
    assert refusal(config("own_optimizers:InPlace")).startswith(
        "inner.optimizer: own_optimizers:InPlace: update writes"
    )
    coupled = refusal(config("own_optimizers:Coupled", mesh={"data": 2}), world_size=2)
    assert coupled.startswith("mesh.data: own_optimizers:Coupled moves a weight by what others are")
    groups = {"inner": {"groups": {"bias": "bias", "rest": ""}}}
    grouped = config("own_optimizers:Groupless", {"lr": {**LR["lr"], "per_group": True}}, **groups)
    assert "its update takes no values per group" in refusal(grouped)


def test_what_a_sign_does_is_told() -> None:
    assert any(remark.startswith("lion moves weights by a sign") for remark in built(config("lion")).remarks)
    assert not any("sign" in remark for remark in built(config("sgd")).remarks)


@pytest.mark.parametrize("name", [*INNER_OPTIMIZERS, "own_optimizers:HeavyBall", "own_optimizers:Normalized"])
def test_the_witness_agrees_with_plain_pytorch(name: str) -> None:
    """Losses, weights, products and hypergradient; NAdam's product of momenta is not rounded to float32 there."""
    learned = {**LR, "weight_decay": {"init": 0.01, "step": 0.01}} if name in INNER_OPTIMIZERS else LR
    problem = built(config(name, learned, dtype="float64")).problem
    remark = next(each for each in built(config(name, learned, dtype="float64")).remarks if "checked" in each)
    assert remark.startswith("checked against plain PyTorch: 3 steps in float64")
    assert problem.dtype == torch.float64
    error = float(remark.rsplit("hypergradient to ", 1)[1])
    assert error < 1e-4, remark  # central differences in float64


def test_a_run_with_a_users_optimizer_is_retrained_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = config({"name": "own_optimizers:HeavyBall", "sign": 1.0}, model={"name": "mlp"}, outer={"steps": 1})
    result = fds_dist.optimize(source, progress=False)
    assert result.schedule.optimizer["name"] == "own_optimizers:HeavyBall"
    assert result.schedule.optimizer["options"] == {"sign": 1.0}
    assert result.schedule.at(0)["drag"] == 0.5
    retrained = fds_dist.retrain(result.run_dir, ["epochs=1"], progress=False)
    assert retrained.results[0].final.train_loss < 2.3  # less than by chance over ten classes, log 10
    with pytest.raises(
        UserError, match=r"own_optimizers:HeavyBall is not in torch[.]optim, and a snippet needs only torch"
    ):
        fds_dist.export(result.run_dir)
    assert fds_dist.export(result.run_dir, "csv").startswith("step,lr,drag\n")
