"""Compares the hypergradients of a user's task with independent derivatives, on a short horizon in float64.

The derivatives are forward mode by both exact methods and by differences of gradients, reverse mode through the whole
unrolled run, and central finite differences of the validation loss, alone where there are no second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fds_dist.common.console import Count, count_nothing
from fds_dist.common.faults import UserError
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import validate
from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.training import initial_state
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents import EXACT_METHODS, Part
from fds_dist.tangents.methods import TrialPoint, choose_method


@dataclass(frozen=True)
class Precision:
    """What can be expected of a comparison."""

    exact: float  # between exact methods
    products: float  # between an exact method and one by differences of gradients
    difference: float  # between a method and finite differences
    steps: tuple[float, ...]
    """Relative steps h of the differences, tried until one agrees: kinks spoil large ones and rounding small ones."""


FLOAT64 = Precision(1e-10, 1e-7, 1e-5, (1e-6, 1e-5, 1e-7, 1e-4))
"""Rounding of 1e-16 through some 10² steps, each amplifying it a little. The differences' own error is about 1e-8 on
smooth networks, more where a ReLU switches within ±h. The last step is for derivatives of 1e-5 and less: the loss
rounds to 1e-16, its difference over h = 1e-5 · 0.01 to 1e-9. Differences of gradients are right to (1e-16)^⅔ = 2e-11
in each step, relative to the tangent, and may be amplified like rounding."""

FLOAT32 = Precision(1e-2, 3e-2, 1e-1, (1e-2, 1e-3, 3e-2))
"""Where the user's code computes in float32: rounding of 1e-7 through as many steps, and 1e-7/h in the differences;
(1e-7)^⅔ = 2e-5 in each product by differences of gradients, amplified like it."""

SMALLEST_SHARE = 1e-4
"""A share of the norm of all hypergradients. If those of one hyperparameter are smaller, they are compared with this
share instead of their own size, which may be pure rounding."""


@dataclass(frozen=True)
class Comparison:
    """One derivative and its distance to the reference."""

    name: str
    hypergradients: list[float]  # [K]
    error: float
    """|this − reverse mode| / |reverse mode|, Euclidean over buckets, the largest over hyperparameters."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within the tolerance. A NaN is not."""
        return self.error <= self.tolerance


AMPLIFIED = 1e-2
"""A relative error of float32 hypergradients from which on rounding is said to be amplified: 10⁵ times its own 1e-7."""


@dataclass(frozen=True)
class LowPrecision:
    """The hypergradients g [K] as a run computes them, in float32 or under autocast, beside the reference r [K] in
    float64, or without autocast: nothing in it can fail."""

    hypergradients: list[float]  # [K]
    error: float  # |g − r| / |r|, Euclidean over all K
    same_signs: int  # of K
    cosine: float
    """g·r / (|g| |r|); NaN where one of them is zero or not finite."""
    under_autocast: bool = False

    @property
    def is_amplified(self) -> bool:
        """Whether the error is more than that of a run through which rounding errors stay small."""
        return not self.error <= AMPLIFIED

    @classmethod
    def between(
        cls, hypergradients: list[float], reference: Sequence[float], under_autocast: bool = False
    ) -> LowPrecision:
        """Their error, signs and angle."""
        pairs = list(zip(hypergradients, reference, strict=True))
        same_signs = sum((low > 0) == (exact > 0) and (low < 0) == (exact < 0) for low, exact in pairs)
        norms = math.hypot(*hypergradients) * math.hypot(*reference)
        is_defined = norms > 0 and math.isfinite(norms)
        cosine = math.fsum(low * exact for low, exact in pairs) / norms if is_defined else math.nan
        return cls(hypergradients, relative_error(hypergradients, reference), same_signs, cosine, under_autocast)


@dataclass(frozen=True)
class Verification:
    """All derivatives at one point λ."""

    horizon: int
    values: list[float]  # [K]
    reference: list[float]  # [K] reverse mode, or forward mode by differences of gradients (see `by_difference`)
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]  # methods that could not be compared, each with the reason
    coarse: str = ""
    """What in the user's code computes below float64; raised to float64 for the comparison, where that is possible."""
    by_difference: bool = False  # whether the network has no second derivatives
    low: LowPrecision | None = None
    """In the precision that the config asks for; None where the comparison is in that precision."""

    @property
    def passed(self) -> bool:
        """Whether there are comparisons, and all agree."""
        return bool(self.comparisons) and all(comparison.agrees for comparison in self.comparisons)


def compare_derivatives(
    problem: Problem, horizon: int, ranks: Ranks, precision: Precision = FLOAT64, count: Count = count_nothing
) -> Verification:
    """Compares all derivatives over `horizon` steps, as far as `precision` lets them agree.

    The problem must be without `clip_hvp` and pruning.

    Args:
        count: hears about the progress: the estimates of all hypergradients, and the differences of each element.
    """
    values = problem.trial_values()
    run = InnerRun(problem, values, 0, horizon, ranks)

    def forward_by(method: str) -> list[float]:
        return estimate_forward(replace(run, problem=problem.by(method))).hypergradients

    reasons = {method: _unusable(problem, method) for method in EXACT_METHODS}
    left_out = [f"forward mode by {method}: {reason}" for method, reason in reasons.items() if reason]
    comparisons, by_difference = [], problem.tangents.method == "difference" and all(reasons.values())
    usable = [method for method, reason in reasons.items() if not reason]
    methods = [] if by_difference else [*usable, *({problem.tangents.method} - set(EXACT_METHODS))]
    estimates, total = 1 + len(methods), 1 + len(methods) + problem.space.size
    count(0, total)
    if by_difference:
        left_out.append("reverse mode: it needs second derivatives")
        reference = forward_by("difference")
    else:
        reference = estimate_reverse(replace(run, problem=problem.by("double_backward"))).hypergradients
        for done, method in enumerate(methods, 1):
            count(done, total)
            tolerance = precision.exact if method in EXACT_METHODS else precision.products
            forward = forward_by(method)
            error = worst_error(problem.space, forward, reference)
            comparisons.append(Comparison(f"forward, {method}", forward, error, tolerance))
    differences = finite_differences(
        problem, values, horizon, reference, precision, lambda done: count(estimates + done, total)
    )
    error = worst_error(problem.space, differences, reference)
    comparisons.append(Comparison("finite differences", differences, error, precision.difference))
    return Verification(horizon, values, reference, tuple(comparisons), tuple(left_out), by_difference=by_difference)


def compare_precision(problem: Problem, verification: Verification, ranks: Ranks) -> LowPrecision:
    """The hypergradients of `problem`, in a lower precision, on the run that `verification` has compared."""
    run = InnerRun(problem, verification.values, 0, verification.horizon, ranks)
    hypergradients = estimate_forward(run).hypergradients
    return LowPrecision.between(hypergradients, verification.reference, problem.low is not None)


def finite_differences(
    problem: Problem,
    values: Sequence[float],
    horizon: int,
    reference: Sequence[float],
    precision: Precision,
    count: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Central differences [K] of the validation loss, each with the step size that agrees best with `reference`.

    The validation loss is the one that a run reports, its running statistics included. `count` hears how many elements
    are done.
    """

    def loss_at(element: int, value: float) -> float:
        moved = list(values)
        moved[element] = value
        training, _ = run_horizon(InnerRun(problem.by("plain"), moved, 0, horizon))
        return validate(problem, training.network, training.judged_state, 0, with_gradient=False).loss

    def difference(element: int) -> float:
        count(element)
        value, candidates = values[element], []
        for relative_step in precision.steps:
            h = relative_step * (abs(value) or 1.0)
            candidates.append((loss_at(element, value + h) - loss_at(element, value - h)) / (2 * h))
            if relative_error(candidates[-1:], [reference[element]]) < precision.difference / 10:
                break
        return min(candidates, key=lambda candidate: abs(candidate - reference[element]))

    return [difference(element) for element in range(len(values))]


def relative_error(values: Sequence[float], reference: Sequence[float], floor: float = 0.0) -> float:
    """|values − reference| / max(|reference|, floor); infinite if that is not a number."""
    difference, norm = math.dist(values, reference), max(math.hypot(*reference), floor)
    if difference == 0:
        return 0.0
    return difference / norm if norm and math.isfinite(difference) else math.inf


def worst_error(space: HyperparameterSpace, values: Sequence[float], reference: Sequence[float]) -> float:
    """The largest relative error of a hyperparameter: no large derivative hides the error of a small one."""
    floor = SMALLEST_SHARE * math.hypot(*reference)
    rows = zip(space.rows(values).values(), space.rows(reference).values(), strict=True)
    return max(relative_error(*pair, floor) for pair in rows)


def _unusable(problem: Problem, method: str) -> str:
    network = problem.by(method).network(0)
    state, part = initial_state(problem, network), network.cast(Part(next(problem.batches(0))))
    theta = state.weights.new_zeros(problem.theta_size)
    loss = problem.training_loss(network)
    try:
        choose_method(method, TrialPoint(loss, state.weights, theta, state.buffers, part, problem.chunk_size > 1))
    except UserError as error:
        return error.faults[0].problem
    return ""
