"""Hypergradients by the knots of piecewise-linear schedules against independent derivatives, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import Buckets, TensorTask, flat, image_task, make_problem, mlp, smoothed_task
from selection import slow_unless
from unrolled import (
    DIFFERENCES,
    EXACT,
    Rules,
    central_differences,
    errors,
    unrolled_hypergradients,
)

from fds_dist.inner.estimate import validate
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.estimators.greedy import estimate_greedy
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plan import estimator_cost, make_plan, tangent_steps
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.schedule.shapes import Linear
from fds_dist.tangents.optimizers import SGD, Adam, InnerOptimizer
from fds_dist.tangents.step import Pruning

HORIZON = 22
"""Knots of four, of two and of three hyperparameters stand on steps, those of five between them."""

KNOTS = {"lr": [0.0, 0.1, 0.05, 0.02], "momentum": [0.5, 0.8, 0.3, 0.9, 0.7], "weight_decay": [0.01, 0.02]}
ADAM_KNOTS = {
    "lr": [0.01, 0.02, 0.005],
    "beta1": [0.9, 0.8],
    "beta2": [0.99],
    "eps": [1e-3, 1e-2],
    "weight_decay": [0.1],
}
GROUPED = {"lr.norm": [0.2, 0.1], "lr.rest": [0.1, 0.05, 0.08], "momentum": [0.5, 0.7], "weight_decay.norm": [0.001],
           "weight_decay.rest": [0.01, 0.03]}  # fmt: skip
SMOOTHED = {"lr": [0.1, 0.02, 0.05], "smoothing": [0.3, 0.1]}
PATTERNS = {"norm": "^[14]", "rest": ""}

RUNS: dict[str, tuple[TensorTask, Buckets, Rules, InnerOptimizer]] = {
    "sgd": (image_task(), KNOTS, Rules(), SGD()),
    "nesterov": (image_task(), KNOTS, Rules(nesterov=True), SGD(nesterov=True)),
    "adamw": (image_task(), ADAM_KNOTS, Rules("adamw"), Adam(decoupled=True)),
    "averaged": (image_task(mlp), KNOTS, Rules(ema=0.9, clip=0.02), SGD()),
    "grouped": (image_task(), GROUPED, Rules(patterns=PATTERNS), SGD()),
    "loss": (smoothed_task(), SMOOTHED, Rules(), SGD()),
}


def linear_problem(name: str, **options: Any) -> Problem:
    task, knots, rules, optimizer = RUNS[name]
    clip, ema = (None if rules.clip > 1 else rules.clip), rules.ema or None
    settings: dict[str, Any] = {"clip_gradient": clip, "ema": ema, "groups": rules.patterns, "optimizer": optimizer}
    return make_problem(task, knots, shape="linear", **settings, **options)


WAYS = [
    ("forward", "jvp"),
    ("forward", "double_backward"),
    ("reverse", "double_backward"),
    ("random_directions", "jvp"),
]


def kept(name: str, estimator: str, method: str) -> bool:
    """Whether CI has a run by an estimator: those without jvp, which costs most, and the two unlike ones with it."""
    return method != "jvp" or name in ("sgd", "grouped")


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> tuple[str, list[float]]:
    task, knots, rules, _ = RUNS[request.param]
    return request.param, unrolled_hypergradients(task, knots, HORIZON, replace(rules, shape="linear"))


@pytest.mark.parametrize(
    ("reference", "estimator", "method"),
    slow_unless(kept, [(name, *way) for name in RUNS for way in WAYS]),
    indirect=["reference"],
)
def test_hypergradients_of_knots_equal_reverse_mode_through_the_unrolled_run(
    reference: tuple[str, list[float]], estimator: str, method: str
) -> None:
    name, expected = reference
    _, knots, rules, _ = RUNS[name]
    chunk_size = 4 if method == "jvp" else 1  # by jvp one at a time takes twice as long
    run = InnerRun(linear_problem(name, method=method, chunk_size=chunk_size), flat(knots), 0, HORIZON)
    found = ESTIMATORS[estimator](run).hypergradients  # as many random directions as knots are exact, too
    # Adam divides by the root of small second moments, which amplifies rounding.
    limit = (100 if rules.optimizer == "adamw" else 10 if estimator == "random_directions" else 1) * EXACT
    assert max(errors(found, expected, knots).values()) < limit


def test_the_reference_equals_central_differences() -> None:
    knots, rules = {**KNOTS, "lr": [0.03, 0.1, 0.05, 0.02]}, Rules(shape="linear")
    expected = unrolled_hypergradients(image_task(), knots, HORIZON, rules)
    found = central_differences(image_task(), knots, HORIZON, rules)
    assert max(errors(found, expected, knots).values()) < DIFFERENCES


def test_a_vector_hyperparameter_is_interpolated_entry_by_entry() -> None:
    def weighted(output: torch.Tensor, target: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (
            values["auxiliary"][target] * torch.nn.functional.cross_entropy(output, target, reduction="none")
        ).mean()

    task = image_task(mlp, weighted)
    task.val_loss = torch.nn.functional.cross_entropy
    knots: dict[str, Sequence[Any]] = {
        "lr": [0.1, 0.05], "auxiliary": [[1.0, 0.5, 1.5, 1.0], [0.7, 1.0, 0.4, 1.2], [1.0, 0.2, 0.9, 0.6]]
    }  # fmt: skip
    expected = unrolled_hypergradients(task, knots, 11, Rules(shape="linear"))
    for estimator in ("forward", "reverse"):
        run = InnerRun(make_problem(task, knots, shape="linear", method="jvp"), flat(knots), 0, 11)
        found = ESTIMATORS[estimator](run).hypergradients
        # Both parts of λ, each by its own length.
        parts = [(torch.tensor(found[part]), torch.tensor(expected[part])) for part in (slice(2), slice(2, None))]
        assert all((a - b).norm() < EXACT * b.norm() for a, b in parts)


def test_the_run_trains_with_exactly_the_values_of_its_schedule() -> None:
    problem = make_problem(image_task(mlp), KNOTS, shape="linear", dtype=torch.float32)
    run, schedule = InnerRun(problem, flat(KNOTS), 0, HORIZON), problem.space.schedule(flat(KNOTS), HORIZON)
    rows = [run.hyperparameters[each.row(step)] for each in run.segments() for step in range(each.start, each.stop)]
    assert [row.tolist() for row in rows] == [
        torch.tensor(list(schedule.at(step).values())).tolist() for step in range(HORIZON)
    ]


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_greedy_sums_what_each_later_loss_within_a_knots_window_owes_to_it(discount: float) -> None:
    """By central differences: the derivative of the loss after step t by the values of the steps s ≤ t of the window,
    times their weights and times discount^(t − s)."""
    knots, horizon, window = {"lr": [0.1, 0.05, 0.08], "momentum": [0.5]}, 6, Linear(3)
    task = image_task(mlp)
    problem = make_problem(task, knots, shape="linear")
    found = estimate_greedy(InnerRun(problem, flat(knots), 0, horizon), discount=discount).hypergradients
    rates = [problem.space.schedule(flat(knots), horizon).at(step)["lr"] for step in range(horizon)]
    unshared = make_problem(task, {"lr": rates, "momentum": [0.5]})

    def loss_after(steps: int, moved: int, by: float) -> float:
        values = [rate + by * (step == moved) for step, rate in enumerate(rates)]
        run = InnerRun(unshared, [*values, 0.5], 0, horizon, on_step=lambda state, loss: state.step < steps)
        training, _ = run_horizon(run)
        return validated(unshared, training.state)

    for knot in range(3):
        total = 0.0
        for step in window.window(knot, horizon):
            for later in [each for each in window.window(knot, horizon) if each >= step]:
                (weight,) = [w for bucket, w in window.readings(step, horizon) if bucket == knot]
                if factor := discount ** (later - step):
                    slope = (loss_after(later + 1, step, 1e-5) - loss_after(later + 1, step, -1e-5)) / 2e-5
                    total += weight * factor * slope
        # Differences err by 1e-16/1e-5 and the third derivative times 1e-10.
        assert found[knot] == pytest.approx(total, rel=1e-7, abs=1e-9)


def validated(problem: Problem, state: InnerState) -> float:
    return validate(problem, problem.network(0), state, 0, with_gradient=False).loss


@pytest.mark.parametrize("pruning", [Pruning("alternate", 0.5), Pruning("truncate", 0.25)])
def test_pruned_steps_count_from_one_knots_first_step_to_the_next(
    pruning: Pruning, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(image_task(mlp), KNOTS, shape="linear", pruning=pruning)
    taken = []
    from fds_dist.inner import advance as room

    original = room.advance
    monkeypatch.setattr(room, "advance", lambda *args: taken.append(len(args[-1])) or original(*args))
    run = InnerRun(problem, flat(KNOTS), 0, HORIZON)
    run_horizon(run, make_plan(problem.space.starts(HORIZON), HORIZON, 1).owned[0])
    assert sum(taken) == tangent_steps(problem, HORIZON)
    whole = make_problem(image_task(mlp), KNOTS, shape="linear")
    assert 0 < sum(taken) < tangent_steps(whole, HORIZON)
    plan = make_plan(whole.space.starts(HORIZON), HORIZON, 1)
    assert tangent_steps(whole, HORIZON) == plan.load(0)  # what check and the balance go by


def test_the_plan_starts_a_knot_after_the_knot_before_it_and_balances_that_cost() -> None:
    space = make_problem(image_task(mlp), {"lr": [0.1] * 4, "momentum": [0.5, 0.6]}, shape="linear").space
    assert space.starts(10) == [0, 1, 4, 7, 0, 1]
    plan = make_plan(space.starts(10), 10, 2)
    assert sorted(map(plan.load, range(2))) == [22, 25]  # 10 + 9 + 6 and 10 + 9 + 3
    greedy = estimator_cost("greedy", make_problem(image_task(mlp), {"lr": [0.1] * 4}, shape="linear"), 10, 0.5)
    assert greedy == 2 * 10 + 2 * (3 + 5 + 5 + 3)  # every step reads two knots, but for the four that are knots
