"""Hypergradients of a user's own task against independent derivatives, on a short horizon in float64.

Forward mode by both methods, reverse mode through the whole unrolled run, and central finite differences of the
validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.estimators import estimate_forward, estimate_reverse
from fds_dist.engine.inner_run import InnerState, run_horizon
from fds_dist.engine.problem import Problem
from fds_dist.engine.validation import validate
from fds_dist.faults import UserError
from fds_dist.tangents import METHODS
from fds_dist.tangents.support import choose_method

EXACT_TOLERANCE = 1e-10
"""Between exact methods: float64 rounding (1e-16) through some 10² steps, each amplifying it a little."""

DIFFERENCE_TOLERANCE = 1e-5
"""To finite differences: their own error is about 1e-8 on smooth networks, more where a ReLU switches within ±h."""

DIFFERENCE_STEPS = (1e-6, 1e-5, 1e-7)
"""h relative to the value, tried until one agrees: kinks spoil large steps and rounding small ones."""


@dataclass(frozen=True)
class Comparison:
    """One derivative beside the reference."""

    name: str
    hypergradients: list[float]  # [K]
    error: float
    """|this − reverse mode| / |reverse mode|, Euclidean over K."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within the tolerance (a NaN is not)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """All derivatives at one point λ."""

    horizon: int
    values: list[float]  # [K]
    reference: list[float]  # [K] reverse mode
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]
    """What could not be compared, and why."""

    @property
    def passed(self) -> bool:
        """Whether all agree, and there was something to compare."""
        return bool(self.comparisons) and all(comparison.agrees for comparison in self.comparisons)


def verification_point(problem: Problem) -> list[float]:
    """λ to verify at [K]: the initial values, and a first outer step's size where one is zero.

    At lr = 0 all other hypergradients are exactly zero, and agreement would mean nothing.
    """
    return [owner.clamp(owner.init or owner.step) for owner, _ in problem.space.elements]


def compare_derivatives(problem: Problem, horizon: int, ranks: Ranks) -> Verification:
    """Compares all derivatives over `horizon` steps; the problem must be in float64, without `clip_hvp` and pruning."""
    values = verification_point(problem)
    reference = estimate_reverse(problem, values, 0, horizon, ranks, _go_on).hypergradients
    comparisons, left_out = [], []
    for method in METHODS:
        if reason := _unusable(problem, method):
            left_out.append(f"forward mode by {method}: {reason}")
            continue
        forward = replace(problem, tangents=replace(problem.tangents, method=method))
        found = estimate_forward(forward, values, 0, horizon, ranks, _go_on).hypergradients
        error = relative_error(found, reference)
        comparisons.append(Comparison(f"forward, {method}", found, error, EXACT_TOLERANCE))
    differences = finite_differences(problem, values, horizon, reference)
    error = relative_error(differences, reference)
    comparisons.append(Comparison("finite differences", differences, error, DIFFERENCE_TOLERANCE))
    return Verification(horizon, values, reference, tuple(comparisons), tuple(left_out))


def finite_differences(
    problem: Problem, values: Sequence[float], horizon: int, reference: Sequence[float]
) -> list[float]:
    """Central differences of the validation loss [K]; per element the step size that agrees best with `reference`."""

    def loss_at(element: int, value: float) -> float:
        moved = list(values)
        moved[element] = value
        network = problem.network(0)
        state, _ = run_horizon(problem, network, moved, 0, horizon, (), _go_on)
        return validate(problem, network, state.weights, 0).loss

    def difference(element: int) -> float:
        value, candidates = values[element], []
        for relative_step in DIFFERENCE_STEPS:
            h = relative_step * (abs(value) or 1.0)
            candidates.append((loss_at(element, value + h) - loss_at(element, value - h)) / (2 * h))
            if relative_error(candidates[-1:], [reference[element]]) < DIFFERENCE_TOLERANCE / 10:
                break
        return min(candidates, key=lambda candidate: abs(candidate - reference[element]))

    return [difference(element) for element in range(len(values))]


def relative_error(found: Sequence[float], reference: Sequence[float]) -> float:
    """|found − reference| / |reference|; 0 where both are zero."""
    difference = math.dist(found, reference)
    return difference / math.hypot(*reference) if difference else 0.0


def _unusable(problem: Problem, method: str) -> str:
    network = problem.network(0)
    batch = network.cast(next(problem.batches(0)))
    theta = network.initial_weights.new_zeros(len(problem.loss_hyperparameters))
    try:
        choose_method(method, problem.training_loss(network), network.initial_weights, theta, batch, False)
    except UserError as error:
        return error.faults[0].problem
    return ""


def _go_on(state: InnerState, loss: Tensor) -> bool:
    return True
