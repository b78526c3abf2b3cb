"""Greedy hypergradients against derivatives written out by hand, and against forward mode where both must agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fds_dist.common.faults import UserError
from fds_dist.common.randomness import seeded
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimate import validate
from fds_dist.inner.estimators import estimate_greedy
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.inner.tangent_options import TangentOptions
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents.optimizers import SGD
from fds_dist.tasks.synthetic import synthetic

ONE = Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), torch.device("cpu"))


def go_on(state: InnerState, loss: torch.Tensor) -> bool:
    return True


def quadratic(buckets: int) -> Problem:
    """The synthetic quadratic, whose one validation batch is the whole validation set, in float64."""
    task: Any = synthetic(dimension=6, samples=12, steps_per_epoch=5)
    space = HyperparameterSpace(
        (
            Hyperparameter("lr", 0.2, 0.1, buckets),
            Hyperparameter("momentum", 0.5, 0.1, buckets),
            Hyperparameter("weight_decay", 0.02, 0.1, 1),
        )
    )

    def build(seed: int) -> torch.nn.Module:
        with seeded(seed):
            return task.build_model(seed)

    return Problem(task, build, SGD(), space, TangentOptions("double_backward"), torch.device("cpu"), torch.float64)


def loss_after(problem: Problem, values: list[float], steps: int, horizon: int) -> float:
    """Validation loss after the first `steps` of `horizon` steps."""
    network = problem.network(0)
    run = InnerRun(problem, values, 0, horizon, on_step=lambda state, loss: state.step < steps)
    training, _ = run_horizon(run)
    return validate(problem, network, training.state, 0).loss


@pytest.mark.parametrize("horizon", [1, 5])
def test_with_one_step_per_bucket_greedy_is_the_derivative_of_the_loss_after_that_step(horizon: int) -> None:
    problem = quadratic(buckets=horizon)
    values = problem.space.initial()
    found = estimate_greedy(InnerRun(problem, values, 0, horizon)).hypergradients
    for element in range(horizon):  # lr: element t is read by step t alone
        difference = []
        for sign in (1, -1):
            moved = list(values)
            moved[element] += sign * 1e-6
            difference.append(loss_after(problem, moved, element + 1, horizon))
        # Central differences of a quadratic in lr are exact but for rounding: 1e-16 · loss / 1e-6.
        assert found[element] == pytest.approx((difference[0] - difference[1]) / 2e-6, rel=1e-7, abs=1e-9)


def test_with_full_memory_and_one_bucket_it_sums_the_derivatives_of_every_later_loss() -> None:
    horizon = 5
    problem = quadratic(buckets=1)
    values = problem.space.initial()
    found = estimate_greedy(InnerRun(problem, values, 0, horizon), discount=1.0).hypergradients
    for element in range(problem.space.size):
        total = 0.0
        for steps in range(1, horizon + 1):
            ends = []
            for sign in (1, -1):
                moved = list(values)
                moved[element] += sign * 1e-6
                ends.append(loss_after(problem, moved, steps, horizon))
            total += (ends[0] - ends[1]) / 2e-6
        # Rounding as above, and curvature: the third derivative times (1e-6)², far below.
        assert found[element] == pytest.approx(total, rel=1e-6)


def test_memory_between_none_and_full_gives_values_between() -> None:
    problem = quadratic(buckets=1)
    values = problem.space.initial()
    lr = [
        estimate_greedy(InnerRun(problem, values, 0, 5), discount=discount).hypergradients[0]
        for discount in (0.0, 0.5, 1.0)
    ]
    # On this quadratic every step's own contribution to the lr hypergradient has the same sign.
    assert abs(lr[0]) < abs(lr[1]) < abs(lr[2])


def test_without_memory_no_hessian_product_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = quadratic(buckets=2)
    asked = []
    from fds_dist.tangents import products

    original = products.DoubleBackwardPoint.products
    monkeypatch.setattr(
        products.DoubleBackwardPoint,
        "products",
        lambda self, *tangents: asked.append(len(tangents[0])) or original(self, *tangents),
    )
    estimate_greedy(InnerRun(problem, problem.space.initial(), 0, 4))
    assert not asked
    estimate_greedy(InnerRun(problem, problem.space.initial(), 0, 4), discount=0.5)
    assert sum(asked) == 4 * 3  # on four steps, of lr, momentum and weight decay


def test_no_validation_batch_is_an_error_and_not_an_endless_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = quadratic(buckets=1)
    monkeypatch.setattr(problem.task, "val_batches", lambda outer_step: [])
    with pytest.raises(UserError, match=r"val_batches\(outer_step=0\) gave no batch"):
        estimate_greedy(InnerRun(problem, problem.space.initial(), 0, 5))


def test_a_run_that_ends_early_has_no_hypergradients() -> None:
    problem = quadratic(buckets=1)
    estimate = estimate_greedy(
        InnerRun(replace(problem), problem.space.initial(), 0, 5, on_step=lambda state, loss: state.step < 2)
    )
    assert all(value != value for value in estimate.hypergradients)
