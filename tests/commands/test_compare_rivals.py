"""The rivals themselves: the values of each step, what runs with them, and what they refuse."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from comparing import HORIZON, Interrupting, comparable, comparison_job, rates, run, small_problem
from problems import conv_bn, image_task, make_problem, mlp, smoothed_task
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.commands.compare.plot import LINES
from fds_dist.commands.compare.rivals import RIVALS
from fds_dist.commands.compare.rivals.curves import Curve
from fds_dist.commands.compare.rivals.refined import NormRecorder
from fds_dist.commands.compare.rivals.schedule_free import ScheduleFree
from fds_dist.common.faults import UserError
from fds_dist.config.compare import MethodName
from fds_dist.inner.plain_run import plain_run
from fds_dist.inner.problem import Problem
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents.optimizers import SGD, Adam, make_inner_optimizer

needs_schedulefree = pytest.mark.skipif(
    importlib.util.find_spec("schedulefree") is None, reason="needs the extra schedulefree"
)


def curve(decay: Callable[[float], float], warmup: float, x: float) -> float:
    """A warm-up and a decay, at x of the relative horizon."""
    return x / warmup if x < warmup else decay((x - warmup) / (1 - warmup))


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "linear": lambda u: 1 - u,
}


def test_the_config_names_all_rivals_and_the_figure_draws_them() -> None:
    assert set(get_args(MethodName)) == set(RIVALS) == set(LINES)


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("horizon", [7, 40])
def test_a_curve_has_a_value_of_its_own_at_each_step(name: str, horizon: int) -> None:
    problem = make_problem(image_task(mlp), {"lr": [0.1, 0.1, 0.1], "momentum": [0.1, 0.1], "weight_decay": [1e-4]})
    straight = tuple(replace(owner, shape="linear") for owner in problem.space.learned)
    problem = replace(
        problem, space=replace(problem.space, learned=straight)
    )  # the shape of the buckets is not the curve's
    setting = Curve(name).setting(problem, horizon, [0.25, 0.8, 0.9, 1e-3])
    points = 2000
    expected = [
        0.8 * sum(curve(DECAYS[name], 0.25, (step + (i + 0.5) / points) / horizon) for i in range(points)) / points
        for step in range(horizon)
    ]
    # 1e-5: the midpoint rule on 2000 points errs by the kink at the peak alone, less than a point's width.
    assert rates(setting, horizon) == pytest.approx(expected, abs=1e-5)
    assert all(earlier != later for earlier, later in pairwise(rates(setting, horizon)))
    assert rates(setting, horizon, "momentum") == [0.9] * horizon
    assert rates(setting, horizon, "weight_decay") == [1e-3] * horizon


def test_groups_and_vectors_share_a_curve_and_keep_to_their_bounds() -> None:
    task = smoothed_task(mlp)
    buckets = {"lr.first": [0.1, 0.1], "lr.rest": [0.1], "momentum": [0.5], "smoothing": [0.1]}
    problem = make_problem(task, buckets, groups={"first": "^1", "rest": ".*"})
    first, rest, *others = problem.space.learned
    learned = (replace(first, bounds=(0.2, 0.3)), replace(rest, bounds=(0.1, 0.2)), *others)
    problem, recipe = replace(problem, space=replace(problem.space, learned=learned)), Curve("linear")
    ranges = recipe.ranges(comparison_job(problem, ranges={"smoothing": [0.0, 0.2]}))
    assert [(name, each.low, each.high) for name, each in ranges.items()] == [
        ("warmup", 0.0, 0.3),
        ("lr", 0.1, 0.3),
        ("momentum", 0.0, 0.99),
        ("smoothing", 0.0, 0.2),
    ]
    setting = recipe.setting(problem, 10, [0.0, 0.4, 0.9, 0.05])
    assert rates(setting, 10, "lr.first") == pytest.approx([0.3, 0.3, 0.3, 0.26, 0.22, *[0.2] * 5])
    decay = [0.4 * (1 - (step + 0.5) / 10) for step in range(10)]
    assert rates(setting, 10, "lr.rest") == pytest.approx([min(max(rate, 0.1), 0.2) for rate in decay])
    assert rates(setting, 10, "smoothing") == [0.05] * 10
    assert recipe.named(problem, [0.0, 0.4, 0.9, 0.05])["smoothing"] == [0.05]
    assert math.isfinite(plain_run(*setting, 0, 10).val.loss)


def trained(problem: Problem, optimizer: Callable[[nn.Module], Any], rate: Callable[[int], float] | None = None) -> Any:
    """The module after the horizon in plain PyTorch, and the optimizer."""
    module = problem.module(0).double()
    stepper = optimizer(module)
    for step, batch in enumerate(islice(problem.batches(0), HORIZON)):
        if rate:
            stepper.param_groups[0]["lr"] = rate(step)
        stepper.zero_grad()
        F.cross_entropy(module(batch[0]), batch[1]).backward()
        stepper.step()
    return module, stepper


def val_loss(problem: Problem, module: nn.Module) -> float:
    with torch.no_grad():
        (batch,) = problem.batches_of("val_batches", 0)
        return F.cross_entropy(module(batch[0]), batch[1]).item()


def test_a_run_on_a_curve_is_that_of_torch_with_the_rate_set_at_each_step() -> None:
    problem = make_problem(image_task(mlp), {"lr": [0.1, 0.1], "momentum": [0.1]})
    module, _ = trained(
        problem,
        lambda module: torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.8),
        lambda step: 0.3 * (1 - (step + 0.5) / HORIZON),
    )
    outcome = plain_run(*Curve("linear").setting(problem, HORIZON, [0.0, 0.3, 0.8]), 0, HORIZON)
    # 1e-12: float64, ten steps, with another order of operations.
    assert outcome.val.loss == pytest.approx(val_loss(problem, module), rel=1e-12)


def smooth_methods() -> list[str]:
    """Those that can run here."""
    return ["cosine", "refined", *(["schedule_free"] if importlib.util.find_spec("schedulefree") else [])]


def test_smooth_searches_that_are_interrupted_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": smooth_methods(), "budget": 80}
    expected = run(tmp_path / "at once", **options)
    problem = replace(small_problem(), build_model=Interrupting(after=13))
    results, starts = [], 0
    while not results and starts < 30:
        starts += 1
        with suppress(KeyboardInterrupt):
            results.append(run(tmp_path / "in parts", problem, **options))
    assert starts > 3
    assert comparable(results[0]) == comparable(expected)


def test_a_cosine_of_an_earlier_version_is_told_from_the_smooth_one(tmp_path: Path) -> None:
    run(tmp_path, methods=["cosine_buckets"], budget=20)
    (tmp_path / "cosine_buckets").rename(tmp_path / "cosine")  # as it was called
    with pytest.raises(UserError, match="cosine here searches warmup, lr, momentum, and"):
        run(tmp_path, methods=["cosine"], budget=40)


def package_run(problem: Problem, make: str, settings: Mapping[str, Any]) -> float:
    """The validation loss after training with the package as its documentation says."""
    package = pytest.importorskip("schedulefree")

    def optimizer(module: nn.Module) -> Any:
        stepper = getattr(package, make)(module.parameters(), **settings)
        stepper.train()
        return stepper

    module, stepper = trained(problem, optimizer)
    stepper.eval()
    return val_loss(problem, module)


def test_schedule_free_sgd_is_the_packages() -> None:
    problem = make_problem(image_task(mlp), {"lr": [0.1, 0.1], "momentum": [0.1], "weight_decay": [1e-3]})
    setting = ScheduleFree().setting(problem, HORIZON, [0.3, 2.0, 0.8, 1e-2])
    settings = {"lr": 2.0, "momentum": 0.8, "weight_decay": 1e-2, "warmup_steps": 3}
    expected = package_run(problem, "SGDScheduleFree", settings)
    # 1e-12: float64, ten steps, with another order of operations in the gradient.
    assert plain_run(*setting, 0, HORIZON).val.loss == pytest.approx(expected, rel=1e-12)


def test_schedule_free_adamw_is_the_packages_and_fixed_values_stay() -> None:
    adamw = Adam(decoupled=True)
    problem = make_problem(image_task(mlp), {"lr": [0.01]}, {"beta2": 0.97, "weight_decay": 0.1}, optimizer=adamw)
    setting = ScheduleFree().setting(problem, HORIZON, [0.0, 0.02])
    settings = {"lr": 0.02, "betas": (0.9, 0.97), "weight_decay": 0.1, "eps": 1e-8}
    expected = package_run(problem, "AdamWScheduleFree", settings)
    assert plain_run(*setting, 0, HORIZON).val.loss == pytest.approx(expected, rel=1e-12)  # as above


def test_schedule_free_beside_its_learned_schedules_is_the_same_optimizer() -> None:
    own = make_inner_optimizer("schedule_free_sgd", {"weight_lr_power": 1.0})
    problem = make_problem(image_task(mlp), {"lr": [0.3, 0.3]}, {"momentum": 0.8}, optimizer=own)
    setting = ScheduleFree().setting(problem, HORIZON, [0.0, 0.3])
    expected = package_run(problem, "SGDScheduleFree", {"lr": 0.3, "momentum": 0.8, "weight_lr_power": 1.0})
    assert plain_run(*setting, 0, HORIZON).val.loss == pytest.approx(expected, rel=1e-12)  # as above
    assert plain_run(problem, [0.3, 0.3], 0, HORIZON).val.loss == pytest.approx(expected, rel=1e-12)
    lr = ScheduleFree().ranges(comparison_job(problem, ranges={"lr": [0.01, 1.0]}))["lr"]
    assert (lr.low, lr.high) == (0.01, 1.0)  # the config's are those of a schedule-free rate already


@needs_schedulefree
def test_schedule_free_searches_faster_rates_and_an_interpolation() -> None:
    problem = make_problem(smoothed_task(mlp), {"lr": [0.1], "momentum": [0.1], "smoothing": [0.1]})
    recipe = ScheduleFree()
    ranges = recipe.ranges(
        comparison_job(problem, ranges={"smoothing": [0.0, 0.2], "lr": [0.01, 1.0], "warmup": [0.05, 0.1]})
    )
    assert {name: (each.low, each.high) for name, each in ranges.items()} == {
        "warmup": (0.05, 0.1),
        "lr": (0.01, 10.0),
        "momentum": (0.5, 0.99),
        "smoothing": (0.0, 0.2),
    }
    losses = [plain_run(*recipe.setting(problem, HORIZON, [0.0, 1.0, 0.9, s]), 0, HORIZON).val.loss for s in (0.0, 0.2)]
    assert losses[0] != losses[1]


def faults(problem: Problem, method: str, **options: Any) -> list[str]:
    return [str(fault) for fault in RIVALS[method].faults(comparison_job(problem, **options))]


def test_what_a_rival_cannot_do_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = make_problem(image_task(mlp), {"momentum": [0.1]})
    for method in ("cosine", "linear", "refined", "schedule_free"):
        assert any(f"{method} tunes a learned lr, and lr is fixed" in line for line in faults(fixed, method))
    problem = make_problem(image_task(mlp), {"lr": [0.1]})
    with_average, with_groups = replace(problem, ema=0.9), replace(problem, groups={"all": ".*"})
    assert any("no inner.groups" in line for line in faults(with_groups, "schedule_free"))
    assert any("inner.ema=null" in line for line in faults(with_average, "schedule_free"))
    assert any("compare.retrain_seeds=0" in line for line in faults(problem, "schedule_free", retrain_seeds=1))
    statistics = make_problem(image_task(conv_bn), {"lr": [0.1]})
    assert any("running statistics of batch-norm" in line for line in faults(statistics, "schedule_free"))
    other = replace(problem, optimizer=NormRecorder(problem.optimizer, 1))
    monkeypatch.setattr(NormRecorder, "name", "lion")
    assert any("refined has no rule for lion" in line for line in faults(other, "refined"))
    assert any("schedule_free has no lion" in line for line in faults(other, "schedule_free"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "schedulefree" else name)
    with pytest.raises(UserError, match=r"pip install 'fds-dist\[schedulefree\]'"):
        run(tmp_path, problem, methods=["fds", "schedule_free"])
    assert not list(tmp_path.iterdir())  # before anything is trained


def test_a_run_without_any_hyperparameter_trains() -> None:
    class Fixed(SGD):
        """Steps of .1, whatever the space says."""

        defaults: Mapping[str, float] = {}  # type: ignore[assignment]

        def update(self, weights: Tensor, state: Any, gradient: Tensor, h: Any, per_weight: Any = None) -> Any:
            return weights - 0.1 * gradient, state

    problem = make_problem(image_task(mlp), {"lr": [0.1]})
    bare = replace(problem, optimizer=Fixed(), space=HyperparameterSpace(()))
    assert plain_run(bare, [], 0, HORIZON).val.loss == pytest.approx(plain_run(problem, [0.1], 0, HORIZON).val.loss)
