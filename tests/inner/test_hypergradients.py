"""Hypergradients of whole inner runs against independent derivatives, all in float64.

The references share no code with the engine: `unrolled.py` trains the plain module in a written-out loop that
`torch.autograd` goes back through as a whole, and `least_squares_hypergradients` is a linear recursion in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from problems import (
    Buckets,
    TensorTask,
    flat,
    image_task,
    make_problem,
    mlp,
    regression_task,
    relative_error,
    smoothed_task,
)
from selection import slow_unless
from torch import Tensor
from torch.nn.functional import cross_entropy
from unrolled import DIFFERENCES, EXACT, Rules, central_differences, errors, unrolled_hypergradients

from fds_dist.common.batch import Part
from fds_dist.inner.estimators import ESTIMATORS, Estimate
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents.optimizers import SGD, Adam, InnerOptimizer
from fds_dist.tasks.synthetic import LeastSquares, synthetic

# ---- acceptance --------------------------------------------------------------------------------------------------


def estimate(task: TensorTask, buckets: Buckets, horizon: int, estimator: str = "forward", **options: Any) -> Estimate:
    return ESTIMATORS[estimator](InnerRun(make_problem(task, buckets, **options), flat(buckets), 0, horizon))


SGD_BUCKETS = {"lr": [0.1, 0.05, 0.08], "momentum": [0.5, 0.7], "weight_decay": [0.01, 0.02]}
UNEVEN_BUCKETS = {"lr": [0.1, 0.05, 0.08, 0.06, 0.04], "momentum": [0.5, 0.7, 0.4], "weight_decay": [0.01, 0.02]}
ADAM_BUCKETS = {
    "lr": [0.01, 0.02],
    "beta1": [0.9, 0.8, 0.85],
    "beta2": [0.95, 0.99],
    "eps": [1e-3, 1e-2],
    "weight_decay": [0.1, 0.05],
}
PATTERNS = {"norm_and_bias": "^[14]|bias", "head": "^8", "rest": ""}
"""Of `conv_bn`, whose layers 1 and 4 are batch-norm and 8 is linear."""
GROUPED_SGD_BUCKETS = {
    "lr.norm_and_bias": [0.2, 0.1],
    "lr.head": [0.05],
    "lr.rest": [0.1, 0.05, 0.08],
    "momentum": [0.5, 0.7],
    "weight_decay.norm_and_bias": [0.001],
    "weight_decay.head": [0.01, 0.03],
    "weight_decay.rest": [0.02],
}
GROUPED_ADAM_BUCKETS = {
    f"{name}.{group}": [value * factor for value in row[:size]]
    for name, row in ADAM_BUCKETS.items()
    for group, factor, size in (("norm_and_bias", 0.9, 1), ("head", 0.95, 2), ("rest", 1.0, 1))
}
CLIP, NORM, NORM_OF_CLIPPED = 0.02, 0.8, 0.215


@dataclass(frozen=True)
class Run:
    buckets: Buckets
    rules: Rules = field(default_factory=Rules)
    optimizer: InnerOptimizer = field(default_factory=SGD)
    tolerance: float = EXACT
    horizon: int = 42

    @property
    def options(self) -> dict[str, Any]:
        bounds = {"clip_gradient": self.rules.clip, "clip_norm": self.rules.norm}
        clips = {name: None if math.isinf(bound) else bound for name, bound in bounds.items()}
        return {"optimizer": self.optimizer, "groups": self.rules.patterns, "ema": self.rules.ema or None, **clips}


RUNS = {
    "sgd": Run(SGD_BUCKETS),
    "nesterov": Run(SGD_BUCKETS, Rules(nesterov=True), SGD(nesterov=True), horizon=24),
    "clipped": Run(SGD_BUCKETS, Rules(clip=CLIP), horizon=24),
    "norm_clipped": Run(SGD_BUCKETS, Rules(norm=NORM), horizon=24),
    "doubly_clipped": Run(SGD_BUCKETS, Rules(clip=CLIP, norm=NORM_OF_CLIPPED), horizon=24),
    "averaged": Run(SGD_BUCKETS, Rules(norm=NORM, ema=0.9), horizon=18),
    "averaged_adamw": Run(ADAM_BUCKETS, Rules("adamw", ema=0.8), Adam(decoupled=True), 100 * EXACT, horizon=30),
    "uneven_buckets": Run(UNEVEN_BUCKETS, horizon=23),
    # Adam divides by the root of a second moment that can be tiny, which amplifies rounding.
    "adam": Run(ADAM_BUCKETS, Rules("adam"), Adam(), 100 * EXACT, horizon=18),
    "adamw": Run(ADAM_BUCKETS, Rules("adamw"), Adam(decoupled=True), 100 * EXACT, horizon=19),
    "grouped": Run(GROUPED_SGD_BUCKETS, Rules(clip=CLIP, patterns=PATTERNS), horizon=18),
    "grouped_nesterov": Run(
        GROUPED_SGD_BUCKETS, Rules(nesterov=True, patterns=PATTERNS), SGD(nesterov=True), horizon=30
    ),
    "grouped_adamw": Run(
        GROUPED_ADAM_BUCKETS, Rules("adamw", patterns=PATTERNS), Adam(decoupled=True), 100 * EXACT, horizon=30
    ),
}


COMBINED = ("averaged_adamw", "grouped_nesterov", "grouped_adamw")
"""Slow: runs of two kinds, each of which CI has in a run of its own."""


@pytest.fixture(scope="module", params=slow_unless(lambda name: name not in COMBINED, zip(RUNS)))
def reference(request: pytest.FixtureRequest) -> tuple[Run, list[float]]:
    run = RUNS[request.param]
    return run, unrolled_hypergradients(image_task(), run.buckets, run.horizon, run.rules)


METHODS = {
    "double_backward": {},
    "jvp_vectorized": {"method": "jvp", "chunk_size": 4},
    "reverse": {"estimator": "reverse"},
}


@pytest.mark.parametrize("method", METHODS)
def test_hypergradients_equal_reverse_mode_through_the_unrolled_run(
    reference: tuple[Run, list[float]], method: str
) -> None:
    run, expected = reference
    found = estimate(image_task(), run.buckets, run.horizon, **METHODS[method], **run.options).hypergradients
    worst = errors(found, expected, run.buckets)
    assert max(worst.values()) < run.tolerance, worst


def test_reference_equals_central_differences(reference: tuple[Run, list[float]]) -> None:
    # Clipping has kinks, but no entry of a gradient crosses one within ±h here.
    run, expected = reference
    found = central_differences(image_task(), run.buckets, run.horizon, run.rules)
    worst = errors(found, expected, run.buckets)
    assert max(worst.values()) < DIFFERENCES, worst


def gradients_of(run: Run) -> list[Tensor]:
    """The gradient [D] at each step, before it is clipped."""
    problem = make_problem(image_task(), run.buckets, **run.options)
    network, seen = problem.network(0), []
    loss = problem.training_loss(network)

    def note(state: InnerState, _: Tensor) -> bool:
        leaf = state.weights.clone().requires_grad_()
        part = Part(next(problem.batches(0, state.step)))
        seen.append(torch.autograd.grad(loss(leaf, leaf.new_zeros(0), state.buffers, part)[0], leaf)[0])
        return True

    run_horizon(InnerRun(problem, flat(run.buckets), 0, run.horizon, on_step=note))
    return seen


def test_a_good_share_of_the_gradient_is_clipped_in_the_clipped_runs() -> None:
    shares = [(gradient.abs() > CLIP).double().mean().item() for gradient in gradients_of(RUNS["clipped"])]
    assert 0.1 < sum(shares) / len(shares) < 0.9
    by_norm = [float(gradient.norm() > NORM) for gradient in gradients_of(RUNS["norm_clipped"])]
    assert 0.1 < sum(by_norm) / len(by_norm) < 0.9
    double = [gradient.clamp(-CLIP, CLIP).norm() > NORM_OF_CLIPPED for gradient in gradients_of(RUNS["doubly_clipped"])]
    assert 0.1 < sum(map(float, double)) / len(double) < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_mean_squared_error(method: str) -> None:
    buckets = {"lr": [0.2, 0.1], "momentum": [0.5], "weight_decay": [0.01]}
    expected = unrolled_hypergradients(regression_task(), buckets, 20)
    found = estimate(regression_task(), buckets, 20, **METHODS[method]).hypergradients
    assert max(errors(found, expected, buckets).values()) < EXACT


def focal_loss(output: Tensor, target: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """A loss of one's own: tempered focal loss and an auxiliary one."""
    log_p = (output / own["temperature"]).log_softmax(-1).gather(-1, target[:, None])[:, 0]
    return -((1 - log_p.exp()) ** own["focus"] * log_p).mean() + own["auxiliary"] * output.logsumexp(-1).square().mean()


def focal_task() -> TensorTask:
    task = image_task(loss=focal_loss)
    task.val_loss = cross_entropy
    return task


LOSSES: dict[str, tuple[TensorTask, Buckets, Rules, InnerOptimizer, float]] = {
    "smoothing": (
        smoothed_task(),
        {"lr": [0.2, 0.1], "smoothing": [0.1, 0.3, 0.2], "momentum": [0.5]},
        Rules(),
        SGD(),
        EXACT,
    ),
    "focal": (
        focal_task(),
        {name: row[:1] for name, row in ADAM_BUCKETS.items()}
        | {"temperature": [1.5], "focus": [0.5, 2.0], "auxiliary": [0.01]},
        Rules("adamw"),
        Adam(decoupled=True),
        100 * EXACT,
    ),
    "focal, grouped": (
        focal_task(),
        {"lr.norm": [0.2], "lr.rest": [0.1], "temperature": [1.5], "focus": [0.5, 2.0], "auxiliary": [0.01]},
        Rules(patterns={"norm": "^[14]", "rest": ""}),
        SGD(),
        EXACT,
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LOSSES)
def test_hyperparameters_inside_the_loss(name: str, method: str) -> None:
    task, buckets, rules, optimizer, tolerance = LOSSES[name]
    expected = unrolled_hypergradients(task, buckets, 20, rules)
    options = {"optimizer": optimizer, "groups": rules.patterns, **METHODS[method]}
    found = estimate(task, buckets, 20, **options).hypergradients
    assert max(errors(found, expected, buckets).values()) < tolerance


@pytest.mark.parametrize("horizon", [1, 2, 16, 17, 150])
def test_reverse_estimator_equals_forward_over_any_horizon(horizon: int) -> None:
    """Its checkpoints lie ⌈√T⌉ apart: one step, perfect squares, others, and a long run."""
    buckets = {"lr": [0.2, 0.1][:horizon], "momentum": [0.5], "weight_decay": [0.01]}
    forward, reverse = (estimate(image_task(mlp), buckets, horizon, name) for name in ("forward", "reverse"))
    assert relative_error(reverse.hypergradients, forward.hypergradients) < EXACT
    assert reverse.val_loss == pytest.approx(forward.val_loss, rel=EXACT)
    assert reverse.val_accuracy == forward.val_accuracy
    if horizon == 1:
        assert forward.hypergradients[1] == reverse.hypergradients[1] == 0  # the first velocity is zero


# ---- closed form -------------------------------------------------------------------------------------------------


def least_squares_hypergradients(
    task: LeastSquares, buckets: Buckets, horizon: int
) -> tuple[np.ndarray, list[float], float]:
    """w_T, hypergradients [K] and L_val of SGD with momentum on two quadratics, where g = A(w − a) is linear."""
    curvature, optimum, val_optimum, w = (
        tensor.numpy() for tensor in (task.curvature, task.optimum, task.val_optimum, task.w0)
    )
    elements = [(name, bucket) for name, row in buckets.items() for bucket in range(len(row))]
    v, z, c = np.zeros_like(w), np.zeros((len(elements), len(w))), np.zeros((len(elements), len(w)))
    for step in range(horizon):
        active = {name: len(row) * step // horizon for name, row in buckets.items()}
        lr, momentum, decay = (buckets[name][active[name]] for name in ("lr", "momentum", "weight_decay"))
        now = {name: np.array([key == name and active[key] == bucket for key, bucket in elements]) for name in buckets}
        c = momentum * c + z @ curvature + decay * z
        c += np.outer(now["momentum"], v) + np.outer(now["weight_decay"], w)
        v = momentum * v + curvature @ (w - optimum) + decay * w
        z = z - lr * c - np.outer(now["lr"], v)
        w = w - lr * v
    residual = curvature @ (w - val_optimum)
    return w, (z @ residual).tolist(), 0.5 * float(residual @ (w - val_optimum))


@pytest.mark.parametrize("method", METHODS)
def test_closed_form_of_least_squares(method: str) -> None:
    task = synthetic(dimension=6, samples=16, steps_per_epoch=7)
    buckets = {"lr": [0.2, 0.5, 0.3], "momentum": [0.3, 0.6], "weight_decay": [0.05, 0.01]}
    weights, expected, val_loss = least_squares_hypergradients(task, buckets, 40)
    problem = make_problem(task, buckets)
    training, _ = run_horizon(InnerRun(problem, flat(buckets), 0, 40))
    assert relative_error(training.state.weights, torch.from_numpy(weights)) < EXACT
    found = estimate(task, buckets, 40, **METHODS[method])  # type: ignore[arg-type]
    assert max(errors(found.hypergradients, expected, buckets).values()) < EXACT
    assert found.val_loss == pytest.approx(val_loss, rel=EXACT)


# ---- edges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_momentum_and_weight_decay_have_exactly_zero_hypergradients_at_zero_learning_rate(method: str) -> None:
    buckets = {"lr": [0.0, 0.0], "momentum": [0.5, 0.9], "weight_decay": [0.01]}
    found = estimate(image_task(), buckets, 12, **METHODS[method]).hypergradients
    assert found[2:] == [0.0, 0.0, 0.0]
    assert all(found[:2])


@pytest.mark.parametrize("method", METHODS)
def test_a_diverging_run_has_no_finite_hypergradient(method: str) -> None:
    buckets = {"lr": [1e6, 1e6], "momentum": [0.9], "weight_decay": [10.0]}
    found = estimate(regression_task(), buckets, 60, **METHODS[method]).hypergradients
    assert not any(map(math.isfinite, found))


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
def test_a_run_that_is_ended_early_has_no_finite_hypergradient(estimator: str) -> None:
    """Also where its last weights are finite: the derivatives of a part of the run are not those of the run."""
    buckets = {"lr": [0.1, 0.1]}
    problem, steps = make_problem(image_task(mlp), buckets), []

    def end_at_step_3(state: InnerState, loss: Tensor) -> bool:
        steps.append(state.step)
        return state.step < 3

    found = ESTIMATORS[estimator](InnerRun(problem, flat(buckets), 0, 10, on_step=end_at_step_3))
    assert steps == [1, 2, 3]
    assert not any(map(math.isfinite, found.hypergradients))
    assert math.isfinite(found.val_loss)
