"""A schedule-free inner optimizer from the config to the search, its witness, a retraining and the package itself."""

from __future__ import annotations

import importlib.util
import json
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import flat, image_task, make_problem, mlp
from safetensors.torch import load_file
from torch import Tensor, nn

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.config import load_config
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers import make_inner_optimizer
from fds_dist.tangents.optimizers.plain_schedule_free import PlainScheduleFree

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},  # 4 batches per epoch
    "model": {"name": "mlp", "hidden": [4], "input_shape": [1, 6, 6], "classes": 3},
    "inner": {"optimizer": "schedule_free_sgd", "steps": 6},
    "hyperparameters": {"lr": {"init": 0.5, "buckets": 2}, "momentum": {"buckets": 1}, "weight_decay": 1e-3},
    "outer": {"steps": 1, "judge_seeds": 0},
    "dtype": "float64",
    "name": "run",
}
BUCKETS = {"lr": [0.5, 0.2, 0.4], "momentum": [0.8, 0.9], "weight_decay": [0.02]}
ADAMW_BUCKETS = {"lr": [0.05, 0.02], "beta1": [0.8, 0.9], "beta2": [0.95], "weight_decay": [0.02]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def remarks(*overrides: str) -> str:
    return " ".join(fds_dist.check(CONFIG, overrides).built.remarks)


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_the_witness_compares_with_the_paper_s_three_sequences(estimator: str, name: str) -> None:
    lines = [f"estimator={estimator}", f"inner.optimizer={name}"]
    lines += ["hyperparameters={lr: {init: 0.05, buckets: 2}, beta1: {}}"] if name.endswith("adamw") else []
    assert "checked against plain PyTorch: 3 steps in float64" in remarks(*lines)


@pytest.mark.parametrize("what", ["eval", "_average"])
def test_a_witness_that_does_otherwise_refuses(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (lambda self: None) if what == "eval" else (lambda self, group, y, z: 0.9 * y)
    monkeypatch.setattr(PlainScheduleFree, what, wrong)
    with pytest.raises(UserError, match=r"validation loss is|step of"):
        fds_dist.check(CONFIG)


def test_all_derivatives_agree() -> None:
    """Also from two equal learning rates, at which the highest one so far has a kink: they are told apart."""
    assert fds_dist.verify(CONFIG, progress=False).verification.passed


# --- a search and its retraining ---


def test_a_retraining_tests_and_saves_the_average() -> None:
    run = fds_dist.optimize(CONFIG, progress=False)
    assert run.schedule.optimizer == {"name": "schedule_free_sgd", "r": 0.0, "weight_lr_power": 2.0}
    (result,) = fds_dist.retrain(run.run_dir, progress=False).results
    average, trained = (load_file(result.folder / f"{name}.safetensors") for name in ("last", "last_trained"))
    assert average.keys() == trained.keys()
    assert not any(torch.equal(average[name], trained[name]) for name in average)
    with pytest.raises(UserError, match=r"ema: 0.9 is an average beside the one that schedule_free_sgd keeps"):
        fds_dist.retrain(run.run_dir, ["ema=0.9", "restart=true"], progress=False)


def test_a_retraining_that_was_cut_off_goes_on_to_the_same_bits() -> None:
    """From a checkpoint within an epoch and between two, as `every_seconds: 1e-9` writes one after each step."""
    lines = ["checkpoint.every_seconds=1e-9"]
    runs = [fds_dist.optimize(CONFIG, [*lines, f"name={name}"], progress=False).run_dir for name in ("whole", "cut")]
    (whole,) = fds_dist.retrain(runs[0], progress=False).results
    step, steps = PlainScheduleFree.step, []

    def until(self: PlainScheduleFree, closure: Any = None) -> Any:
        if len(steps) == 5:
            raise RuntimeError("cut off")
        steps.append(step(self, closure))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="cut off"):
        patch.setattr(PlainScheduleFree, "step", until)
        fds_dist.retrain(runs[1], progress=False)
    (gone_on,) = fds_dist.retrain(runs[1], progress=False).results
    for name in ("last", "last_trained"):
        ours, expected = (load_file(each.folder / f"{name}.safetensors") for each in (gone_on, whole))
        assert all(torch.equal(ours[key], expected[key]) for key in expected)


# --- a loop of one's own ---


def optimizers(schedule: Schedule, model: nn.Module) -> Any:
    """The one that `make_optimizer` gives, or the package's, as a user would make it."""
    yield fds_dist.make_optimizer(schedule, model)
    if importlib.util.find_spec("schedulefree"):
        make = getattr(importlib.import_module("schedulefree"), BUILT_IN[schedule.optimizer["name"]].package_class)
        yield make(model.parameters())


@pytest.mark.parametrize(("name", "buckets"), [("schedule_free_sgd", BUCKETS), ("schedule_free_adamw", ADAMW_BUCKETS)])
def test_a_driven_optimizer_ends_at_the_weights_of_the_search(name: str, buckets: dict[str, list[float]]) -> None:
    problem = make_problem(image_task(mlp), buckets, optimizer=make_inner_optimizer(name, {}))
    schedule = problem.space.schedule(flat(buckets), 10, problem.optimizer_info)
    schedule = Schedule.from_json(schedule.to_json())
    training, _ = run_horizon(InnerRun(problem, flat(buckets), 0, 10))
    for place in range(2 if importlib.util.find_spec("schedulefree") else 1):
        model = problem.build_model(0).double()
        optimizer = next(islice(optimizers(schedule, model), place, None))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is the optimizer that the schedule was learned for
            driver = schedule.attach(optimizer, fixed=True)
        optimizer.train()
        for x, y in islice(problem.batches(0), 10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            driver.step()
        optimizer.eval()
        ours = training.judged_state.weights
        theirs = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)  # roundings of 1e-16 through 10 steps
        assert not torch.equal(ours, training.state.weights)


def test_a_driver_names_what_would_train_otherwise() -> None:
    package = pytest.importorskip("schedulefree")
    schedule = Schedule(4, {"lr": (0.5,)}, {}, {"name": "schedule_free_sgd", "r": 0.0, "weight_lr_power": 2.0})
    weights: list[Tensor] = [nn.Parameter(torch.ones(2))]
    with pytest.warns(UserWarning, match=r"warmup_steps=10 \(learned with warmup_steps=0\), r=1.0|r=1.0"):
        schedule.attach(package.SGDScheduleFree(weights, warmup_steps=10, r=1.0))
    with pytest.warns(UserWarning, match="was learned for schedule_free_sgd and drives SGD"):
        schedule.attach(torch.optim.SGD(weights))


# --- what does not go together ---


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["inner.ema=0.9"], "inner.ema: 0.9 is an average beside the one that schedule_free_sgd keeps; expected null"),
        (
            ["model=null"],
            "inner.optimizer: schedule_free_sgd validates an average of the weights, and 1 has running statistics",
        ),
        (["hyperparameters.momentum=0"], "hyperparameters.momentum: 0 is out of range; expected a number of at least"),
        (["hyperparameters.momentum.init=0"], "hyperparameters.momentum.init: 0 is out of range"),
        (["inner.optimizer={name: schedule_free_sgd, r: -1}"], "inner.optimizer.r: -1 is out of range"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        fds_dist.check(CONFIG, overrides)
    assert words in str(refused.value)


def test_a_snippet_that_needs_only_torch_is_refused_and_the_numbers_are_not() -> None:
    run = fds_dist.optimize(CONFIG, progress=False).run_dir
    with pytest.raises(UserError, match=r"schedule_free_sgd is not in torch.optim.*make_optimizer"):
        fds_dist.export(run)
    assert json.loads(fds_dist.export(run, "json"))["optimizer"]["name"] == "schedule_free_sgd"
    assert fds_dist.export(run, "csv").startswith("step,lr")


def test_the_defaults_are_those_of_the_package() -> None:
    config = load_config(CONFIG, ["hyperparameters={lr: {}, momentum: {}, weight_decay: {}}"])
    starts = {name: entry.init for name, entry in config.hyperparameters.items()}  # type: ignore[union-attr]
    assert starts == {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4}  # of a decay of 0 nothing could be learned
