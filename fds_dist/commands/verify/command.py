"""`fds-dist verify`: the derivatives side by side, in float64 over a short horizon."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from fds_dist.build import Build, ModelBuilder
from fds_dist.commands.inputs import Source, launched
from fds_dist.commands.verify.derivatives import (
    FLOAT32,
    FLOAT64,
    LowPrecision,
    Verification,
    compare_derivatives,
    compare_precision,
)
from fds_dist.common.console import as_html, counting, default_console, paragraph, plain_table
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import counted
from fds_dist.config import Draft, PruneConfig
from fds_dist.inner.problem import Problem
from fds_dist.inner.testimony import raised_to_float64
from fds_dist.tasks.base import Task

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
    progress: bool = False,
) -> VerifyResult:
    """Compares the task's hypergradients with independent derivatives, in float64 over a short horizon.

    The error of the precision that the config asks for, float32 or `inner.precision: bf16`, is stated beside them.

    Args:
        config: a YAML file, or the config as a mapping.
        overrides: `key.sub=value` strings.
        steps: inner steps. None: the run's own horizon, or 50 where that is longer (more for many buckets).
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.
        progress: whether rank 0 shows on standard error how far it is.

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
    with launched(config, overrides, prepare=_exact, task=task, model=model, command="verify") as (built, ranks):
        asked = built.problem
        with raised_to_float64(asked, up_to=math.inf) as (coarse, exact):
            built = _without_autocast(built, exact)
            precision = FLOAT64 if exact else FLOAT32
            show, horizon = progress and ranks.is_first, _verified_steps(built, steps)
            with counting("verify", "derivatives", Console(stderr=True), show=show) as count:
                verification = compare_derivatives(built.problem, horizon, ranks, precision, count)
        lower = asked.low is not None or asked.dtype != built.problem.dtype
        low = compare_precision(asked, verification, ranks) if lower else None
        return VerifyResult(built, replace(verification, coarse=coarse, low=low))


def _without_autocast(built: Build, in_float64: bool) -> Build:
    """Config and problem with all computed in one dtype, float64 where that is possible."""
    config = built.config.model_copy(update={"inner": built.config.inner.model_copy(update={"precision": None})})
    problem = replace(built.problem, low=None)
    if in_float64:
        config, problem = config.model_copy(update={"dtype": "float64"}), problem.in_float64()
    return replace(built, config=config, problem=problem)


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
    if verification.low is not None:
        _print_precision(console, verification.low, kind)
    console.print("[bold green]verified[/]" if verification.passed else "[bold red]not verified[/]")


def _print_precision(console: Console, low: LowPrecision, kind: str) -> None:
    """Prints what the run's own precision makes of the hypergradients, and a warning where that is not much."""
    asked = (
        f"with inner.precision: bf16, against {kind} without it"
        if low.under_autocast
        else f"in float32, against {kind}"
    )
    signs = f"signs {low.same_signs} of {len(low.hypergradients)}"
    paragraph(console, f"{asked}: relative error {low.error:.1e}, {signs}, cosine {low.cosine:.6f}")
    if low.is_amplified and not low.under_autocast:
        advice = "smaller learning rates, inner.clip_gradient or inner.clip_norm tame it, and dtype=float64 is exact"
        paragraph(console, f"[yellow]this run amplifies rounding[/]: {advice}")
