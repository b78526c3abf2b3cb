"""The comparison as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fds_dist.commands.compare.results import REFERENCE, Comparison, Reach
from fds_dist.commands.compare.rivals import CURVES
from fds_dist.common.console import default_console
from fds_dist.common.words import ABSENT, duration, percent, spread


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints a row per method: mean ± standard deviation over the repetitions."""
    console = console or default_console()
    console.print(comparison_table(comparison))
    for line in explanations(comparison):
        console.print(escape(line), highlight=False, soft_wrap=True)


def comparison_table(comparison: Comparison) -> Table:
    """Losses, accuracies, compute, and the compute needed to reach the reference."""
    repetitions = len({run.repetition for run in comparison.runs})
    title = f"{repetitions} repetitions: mean ± standard deviation" if repetitions > 1 else None
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("method")
    for heading in ("own best\nval loss", "judged\nval loss", "judged\nval acc", "test acc", "runs", "time"):
        table.add_column(heading, justify="right")
    table.add_column(f"compute to reach {REFERENCE}")
    for method in comparison.methods:
        runs = comparison.runs_of(method)
        answers = [run.answer for run in runs if run.answer is not None]
        table.add_row(
            method,
            spread_text((answer.own_loss for answer in answers), "{:.4f}".format),
            spread_text((answer.judged_loss for answer in answers), "{:.4f}".format),
            spread_text((answer.judged_accuracy for answer in answers), percent),
            spread_text((run.test_accuracy for run in runs), percent),
            f"{fmean(run.cost for run in runs) / comparison.horizon:.3g}",
            duration(fmean(run.seconds for run in runs)),
            reach_text(comparison, method),
        )
    return table


def explanations(comparison: Comparison) -> list[str]:
    """Lines on what the columns mean, and on searches that ended before their budget was spent."""
    space = ", ".join(
        f"{name} {search['low']:g} to {search['high']:g} ({search['scale']}{_buckets(search)})"
        for name, search in comparison.search_space.items()
    )
    retrained = max(len(run.retrained_accuracies) for run in comparison.runs)
    source = f"mean of {retrained} trained on all training data" if retrained else "mean of the judges' runs"
    lines = [
        "own best: the loss that the search saw. judged: the same values trained anew on "
        f"{comparison.judge_seeds} fresh seeds. test acc: {source}.",
        f"runs: compute in plain training runs of {comparison.horizon:,} steps, at most "
        f"{comparison.budget / comparison.horizon:.3g}. time: summed over ranks. {REFERENCE} uses estimator "
        f"{comparison.estimator}.",
        f"black boxes search {space}.",
    ]
    if smooth := [method for method in comparison.methods if method in CURVES]:
        lines.append(
            f"{', '.join(smooth)}: a value at every step; searched are the warm-up's share of the horizon and one "
            "number per hyperparameter, for all buckets and parameter groups."
        )
    ends = [f"{run.method}, repetition {run.repetition}: {run.note}" for run in comparison.runs if run.note]
    return lines + ends


def spread_text(numbers: Iterable[float | None], text: Callable[[float], str]) -> str:
    """`0.3651 ± 0.0021`; a single number without a deviation."""
    figure = spread(numbers)
    return ABSENT if figure is None else figure.text(text)


def reach_text(comparison: Comparison, method: str) -> str:
    """The compute that this method needs to be judged as good as the reference, in words."""
    reach = comparison.reach(method)
    if reach is None:
        return ABSENT
    if method == REFERENCE:
        costs = [
            run.cost_to_reach(run.answer.judged_loss) for run in comparison.runs_of(method) if run.answer is not None
        ]
        needed = spread_text((cost / comparison.horizon for cost in costs if cost is not None), "{:.3g}".format)
        return f"needed {needed} runs"
    return _reached(reach)


def _reached(reach: Reach) -> str:
    if reach.factor is None:
        return f"not within its budget ({_factor(reach.within)}×)"
    factor = f"needs {reach.factor.text(_factor)}×"
    if reach.reached == reach.repetitions:
        return factor
    return f"{factor} in {reach.reached} of {reach.repetitions}, else more than {_factor(reach.within)}×"


def _factor(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _buckets(search: Mapping[str, Any]) -> str:
    if search["buckets"] == 1:
        return ""
    return f", {search['buckets']} buckets" + (f" of shape {search['shape']}" if "shape" in search else "")
