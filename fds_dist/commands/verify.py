"""Compares the hypergradients of a user's task with independent derivatives, on a short horizon in float64.

The derivatives are forward mode by both exact methods and by differences of gradients, reverse mode through the whole
unrolled run, and central finite differences of the validation loss, alone where there are no second derivatives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from fds_dist.build import Build, ModelBuilder
from fds_dist.commands.inputs import Source, launched
from fds_dist.common.console import as_html, default_console, paragraph, plain_table
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import counted
from fds_dist.config import Draft, PruneConfig
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import validate
from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, initial_state, run_horizon
from fds_dist.inner.testimony import raised_to_float64
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents import EXACT_METHODS, Part
from fds_dist.tangents.methods import TrialPoint, choose_method
from fds_dist.tasks.base import Task


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

    @property
    def passed(self) -> bool:
        """Whether there are comparisons, and all agree."""
        return bool(self.comparisons) and all(comparison.agrees for comparison in self.comparisons)


def compare_derivatives(problem: Problem, horizon: int, ranks: Ranks, precision: Precision = FLOAT64) -> Verification:
    """Compares all derivatives over `horizon` steps, as far as `precision` lets them agree.

    The problem must be without `clip_hvp` and pruning.
    """
    values = problem.trial_values()
    run = InnerRun(problem, values, 0, horizon, ranks)

    def forward_by(method: str) -> list[float]:
        return estimate_forward(replace(run, problem=problem.by(method))).hypergradients

    reasons = {method: _unusable(problem, method) for method in EXACT_METHODS}
    left_out = [f"forward mode by {method}: {reason}" for method, reason in reasons.items() if reason]
    comparisons, by_difference = [], problem.tangents.method == "difference" and all(reasons.values())
    if by_difference:
        left_out.append("reverse mode: it needs second derivatives")
        reference = forward_by("difference")
    else:
        reference = estimate_reverse(replace(run, problem=problem.by("double_backward"))).hypergradients
        methods = [method for method, reason in reasons.items() if not reason]
        for method in (*methods, *({problem.tangents.method} - set(EXACT_METHODS))):
            tolerance = precision.exact if method in EXACT_METHODS else precision.products
            forward = forward_by(method)
            error = worst_error(problem.space, forward, reference)
            comparisons.append(Comparison(f"forward, {method}", forward, error, tolerance))
    differences = finite_differences(problem, values, horizon, reference, precision)
    error = worst_error(problem.space, differences, reference)
    comparisons.append(Comparison("finite differences", differences, error, precision.difference))
    return Verification(horizon, values, reference, tuple(comparisons), tuple(left_out), by_difference=by_difference)


def finite_differences(
    problem: Problem, values: Sequence[float], horizon: int, reference: Sequence[float], precision: Precision
) -> list[float]:
    """Central differences [K] of the validation loss, each with the step size that agrees best with `reference`.

    The validation loss is the one that a run reports, its running statistics included.
    """

    def loss_at(element: int, value: float) -> float:
        moved = list(values)
        moved[element] = value
        training, _ = run_horizon(InnerRun(problem.by("plain"), moved, 0, horizon))
        return validate(problem, training.network, training.state, 0, with_gradient=False).loss

    def difference(element: int) -> float:
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


MOST_ROWS = 200
"""The most learned numbers that the table shows; all are compared."""

VERIFIED_STEPS = 50
"""Inner steps to compare if the config's horizon is longer."""


class VerifyResult(NamedTuple):
    """The result of `verify`."""

    built: Build
    """The config, in float64 where the user's code allows, and the objects made from it."""
    verification: Verification
    """All derivatives, and whether they agree."""

    def _repr_html_(self) -> str:
        return as_html(partial(print_verification, self.built.problem, self.verification))


def verify(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    steps: int | None = None,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
) -> VerifyResult:
    """Compares the task's hypergradients with independent derivatives, in float64 over a short horizon.

    Args:
        config: a YAML file, or the config as a mapping.
        overrides: `key.sub=value` strings.
        steps: inner steps. None: the run's own horizon, or 50 where that is longer (more for many buckets).
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.

    Returns:
        What was built from the config, and the derivatives side by side; `built, verification = verify(...)`.

    Raises:
        UserError: the input is wrong.

    Example:
        >>> config = {
        ...     "task": {"name": "digits"},
        ...     "model": {"name": "mlp", "hidden": [4]},
        ...     "hyperparameters": {"lr": {"init": 0.1, "step": 0.05, "buckets": 2}},
        ... }
        >>> fds_dist.verify(config, steps=4).verification.passed
        True
    """
    with (
        launched(config, overrides, prepare=_exact, task=task, model=model) as (built, ranks),
        raised_to_float64(built.problem, up_to=math.inf) as (coarse, exact),
    ):
        horizon, precision = _verified_steps(built, steps), FLOAT64 if exact else FLOAT32
        if exact:
            config_in_float64 = built.config.model_copy(update={"dtype": "float64"})
            problem = built.problem.in_float64()
            built = replace(built, config=config_in_float64, problem=problem)
        verification = compare_derivatives(built.problem, horizon, ranks, precision)
        return VerifyResult(built, replace(verification, coarse=coarse))


def _verified_steps(built: Build, steps: int | None) -> int:
    """The horizon to compare over: at least one step per bucket."""
    buckets = max(owner.buckets for owner in built.problem.space.learned)
    if steps is None:
        longest = max(built.settings.horizons)
        return max(min(longest, VERIFIED_STEPS), buckets)
    if steps < buckets:
        raise UserError(Fault("--steps", f"{steps} is out of range", f"at least {buckets}, the number of buckets"))
    return steps


def _exact(draft: Draft) -> Draft:
    """The draft without clipping of products and pruning, which are deliberate approximations."""
    if draft.config is None:
        return draft
    exact = {"clip_hvp": None, "prune": PruneConfig()}
    tangents = draft.config.tangents.model_copy(update=exact)
    return replace(draft, config=draft.config.model_copy(update={"tangents": tangents}))


def print_verification(problem: Problem, verification: Verification, console: Console | None = None) -> None:
    """Prints every hypergradient by every method, and the verdict."""
    console = console or default_console()
    name, reference = "reverse", "reverse mode through the whole unrolled run"
    if verification.by_difference:
        name, reference = "forward,\ndifference", "forward mode with differences of gradients"
    comparisons, kind = verification.comparisons, str(problem.dtype).removeprefix("torch.")
    paragraph(
        console,
        f"Hypergradients over {counted(verification.horizon, 'inner step')} in {kind}, by {reference}, and by "
        "independent methods:",
    )
    console.print()
    # Numbers are narrow, so each word of a heading has a line.
    headings = [re.sub(r",? |(?<=_)", "\n", comparison.name) for comparison in comparisons]
    table = plain_table("hyperparameter", "value", name, *headings)
    table.columns[0].justify = "left"
    for index, slot in enumerate(problem.space.elements[:MOST_ROWS]):
        cells = [f"{comparison.hypergradients[index]:.5g}" for comparison in comparisons]
        reference = f"{verification.reference[index]:.5g}"
        table.add_row(escape(str(slot)), f"{verification.values[index]:.4g}", reference, *cells)
    if (more := problem.space.size - MOST_ROWS) > 0:
        table.add_row(f"and {more:,} more")
    table.add_section()
    table.add_row()
    table.add_row("relative error", "", "", *(f"{comparison.error:.1e}" for comparison in comparisons))
    table.add_row("allowed", "", "", *(f"{comparison.tolerance:.0e}" for comparison in comparisons))
    verdicts = ["[green]agrees[/green]" if each.agrees else "[red]differs[/red]" for each in comparisons]
    table.add_row("", "", "", *verdicts)
    console.print(table)
    console.print()
    for reason in verification.left_out:
        paragraph(console, f"left out: {escape(reason)}")
    if verification.coarse:
        raised = ", raised to float64 here" if problem.dtype == torch.float64 else ""
        paragraph(console, f"the network or the loss computes in {escape(verification.coarse)}{raised}")
    console.print("[bold green]verified[/]" if verification.passed else "[bold red]not verified[/]")
