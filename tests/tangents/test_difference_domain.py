"""Differences of gradients along hyperparameters inside the loss, which stay within their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from problems import flat, image_task, make_problem, mlp, relative_error
from torch import Tensor
from torch.nn import functional as F

from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.difference import places

HORIZON = 10


def scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("theta", "tangent", "low", "high", "expected"),
    [
        ([0.5], [1.0], [0.0], [1.0], (0.1, -0.1, 0)),
        ([0.01], [1.0], [0.0], [1.0], (0.1, 0.2, 1)),
        ([0.01], [-1.0], [0.0], [1.0], (-0.1, -0.2, 1)),
        ([0.0], [1.0], [0.0], [1.0], (0.1, 0.2, 1)),
        ([1.0], [1.0], [0.0], [1.0], (-0.1, -0.2, 1)),
        ([0.01], [1.0], [0.0], [0.11], (0.025, 0.05, 1)),  # half of the way to the bound
        ([0.0, 5.0], [1.0, 0.0], [0.0, 5.0], [1.0, 5.0], (0.1, 0.2, 1)),  # what does not move has no bound
        ([0.0, 0.0], [1.0, -1.0], [0.0, 0.0], [1.0, 1.0], (0.1, -0.1, 0)),  # bounds on both sides
    ],
)
def test_both_places_are_within_the_bounds(
    theta: list[float], tangent: list[float], low: list[float], high: list[float], expected: tuple[float, ...]
) -> None:
    bounds = (row(*low), row(*high))
    result = places(scalar(0.1), row(*theta), row(*tangent), bounds)
    assert [float(value) for value in result if value is not None] == pytest.approx(expected)


def penalized(output: Tensor, target: Tensor, h: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, a penalty by θ log θ, which below 0 is no number, and one by √(1 − μ), which above 1 is none."""
    penalty, other = h["penalty"], h["other"]
    factor = (penalty + 1e-9) * (penalty + 1e-9).log() if bool(penalty > 0) else penalty * torch.nan
    return F.cross_entropy(output, target) + (factor + (1 - other).sqrt()) * (output**2).mean()


BUCKETS = {"lr": [0.2], "penalty": [5e-4, 2e-3], "other": [0.999]}


def bounded_problem(method: str, dtype: torch.dtype) -> Problem:
    task = image_task(mlp, penalized)
    task.val_loss = F.cross_entropy
    problem = make_problem(task, BUCKETS, dtype=dtype)
    lr, penalty, other = problem.space.learned
    learned = (lr, replace(penalty, scale="log"), replace(other, bounds=(0.0, 1.0)))
    return replace(problem, space=replace(problem.space, learned=learned)).by(method)


# Logarithm and root curve over the distance to the bound, half of which a step may take: up to a fifth in float32.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-4), (torch.float32, 0.5)])
def test_a_loss_is_never_asked_beyond_a_bound(dtype: torch.dtype, bound: float) -> None:
    def run(method: str, dtype: torch.dtype) -> InnerRun:
        return InnerRun(bounded_problem(method, dtype), flat(BUCKETS), 0, HORIZON)

    expected = estimate_reverse(run("double_backward", torch.float64)).hypergradients
    for each, exact in zip(estimate_forward(run("difference", dtype)).hypergradients, expected, strict=True):
        assert relative_error([each], [exact]) < bound
