"""What `check` and `verify` print."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fds_dist.config import Config, dump_config
from fds_dist.cost import CostReport
from fds_dist.engine.problem import Problem
from fds_dist.hyperparameters import HyperparameterSpace
from fds_dist.verification import Verification

PIPE_WIDTH = 140


def default_console() -> Console:
    """Standard output; wide enough for the tables where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def print_check(
    config: Config, problem: Problem, report: CostReport, remarks: Sequence[str] = (), console: Console | None = None
) -> None:
    """The resolved config, then who owns which tangent and what it costs."""
    console = console or default_console()
    console.print("[bold]Config[/bold]")
    console.print(dump_config(config).rstrip(), markup=False, highlight=False, soft_wrap=True)
    console.print()
    horizons = (
        f"{min(report.horizons)} to {max(report.horizons)}" if len(set(report.horizons)) > 1 else max(report.horizons)
    )
    console.print(
        f"[bold]Cost[/bold] {report.weights:,} weights, {problem.space.size} tangents, {len(report.horizons)} outer "
        f"steps of {horizons} inner steps, method {problem.tangents.method} on {problem.device}",
        highlight=False,
        soft_wrap=True,
    )
    for remark in remarks:
        console.print(f"note: {escape(remark)}", highlight=False, soft_wrap=True)
    console.print(_plan_table(problem.space, report))
    _print_prediction(report, console)


def _plan_table(space: HyperparameterSpace, report: CostReport) -> Table:
    """Ownership, cost and memory per rank for the longest outer step."""
    table = Table(caption="memory: weights, optimizer state, gradient and tangents, without activations", box=None)
    table.add_column("rank", justify="right")
    table.add_column("owns")
    table.add_column("plain steps", justify="right")
    table.add_column("of costliest", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("time", justify="right")
    for rank in report.ranks:
        table.add_row(
            str(rank.rank),
            owned_text(space, rank.elements) or "no tangent",
            f"{rank.plain_steps:,.0f}",
            f"{rank.plain_steps / report.costliest.plain_steps:.0%}",
            bytes_text(rank.memory_bytes),
            seconds_text(rank.seconds),
        )
    return table


def _print_prediction(report: CostReport, console: Console) -> None:
    """Total time, speed-up, and whether reverse mode would be cheaper."""
    ranks, costliest = len(report.ranks), report.costliest.plain_steps
    idle = sum(not rank.elements for rank in report.ranks)
    lines = [
        f"A plain step takes {seconds_text(report.plain_seconds)} here, each tangent adds "
        f"{seconds_text(report.tangent_seconds)}; all outer steps together about {seconds_text(report.total_seconds)}.",
    ]
    if ranks > 1:
        lines.append(f"{ranks} ranks are {report.one_rank_plain_steps / costliest:.2f}× as fast as one.")
    if idle:
        lines.append(f"{idle} of {ranks} ranks own no tangent: they only repeat the training run. Use fewer ranks.")
    reverse, horizon = report.reverse_plain_steps, report.plan.horizon
    cheaper = "reverse" if reverse < costliest else "forward"
    lines.append(
        f"Per inner step: forward mode {costliest / horizon:.1f} plain steps in memory flat in the horizon, reverse "
        f"mode {reverse / horizon:.0f} in memory that grows with its root: {cheaper} mode is cheaper here "
        f"(estimator={cheaper})."
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def owned_text(space: HyperparameterSpace, elements: Sequence[int]) -> str:
    """Elements of λ in words: `lr[0-2,5] momentum[0]`."""
    owned = sorted(elements)
    parts = []
    for name, group in groupby(owned, key=lambda element: space.elements[element][0].name):
        buckets = [space.elements[element][1] for element in group]
        runs = [list(run) for _, run in groupby(enumerate(buckets), key=lambda pair: pair[1] - pair[0])]
        spans = [f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs]
        parts.append(f"{name}[{','.join(spans)}]")
    return " ".join(parts)


def print_verification(problem: Problem, verification: Verification, console: Console | None = None) -> None:
    """Every hypergradient by every method, and the verdict."""
    console = console or default_console()
    console.print(
        f"Hypergradients over {verification.horizon} inner steps in float64; the reference is reverse mode through the "
        "whole unrolled run.",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None)
    table.add_column("hyperparameter")
    table.add_column("value", justify="right")
    table.add_column("reverse", justify="right")
    for comparison in verification.comparisons:
        table.add_column(comparison.name, justify="right")
    for index, (owner, bucket) in enumerate(problem.space.elements):
        found = [f"{comparison.hypergradients[index]:.6g}" for comparison in verification.comparisons]
        reference = f"{verification.reference[index]:.6g}"
        table.add_row(f"{owner.name}[{bucket}]", f"{verification.values[index]:g}", reference, *found)
    table.add_section()
    errors = [f"{comparison.error:.1e}" for comparison in verification.comparisons]
    allowed = [f"{comparison.tolerance:.0e}" for comparison in verification.comparisons]
    verdicts = ["[green]agrees[/green]" if found.agrees else "[red]differs[/red]" for found in verification.comparisons]
    table.add_row("relative error", "", "", *errors)
    table.add_row("allowed", "", "", *allowed)
    table.add_row("", "", "", *verdicts)
    console.print(table)
    for reason in verification.left_out:
        console.print(f"left out: {escape(reason)}", highlight=False, soft_wrap=True)
    verdict = "[green]verified[/green]" if verification.passed else "[red]not verified[/red]"
    console.print(f"[bold]{verdict}[/bold]")


def bytes_text(count: float) -> str:
    """A number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
