"""The figures of `fds-dist bench`, as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

from rich.console import Console
from rich.markup import escape

from fds_dist.commands.bench.steps import NetworkFigures, StepFigures
from fds_dist.common.console import as_html, paragraph, plain_table
from fds_dist.common.words import ABSENT, bytes_text, counted, duration

LONGER = 100
"""How many times longer the horizon is whose memory is compared."""


@dataclass(frozen=True)
class BenchReport:
    """Ratios; 1 is the best that can be, but for `vs_sequential` (more is better) and `precision_error` (0 is).

    None stands for what there was no time for.
    """

    step_cost: float | None
    """Time of a run with tangents over that of plain steps times (1 + 2k), k being the tangents that are live."""
    vs_sequential: float | None
    """Time of Hessian-vector products by one double-backward pass each, with a graph of its own, over ours."""
    scaling_efficiency: float | None
    """Speed-up by the ranks of this launch over the best that the cost model allows; None on one rank."""
    memory_growth: float | None
    """Peak memory at 100 times the horizon over that at 1 time."""
    precision_error: dict[str, float]
    """Per dtype the relative error of the hypergradients against float64."""
    plain_seconds: float
    """A plain training step."""
    tangents: int
    """K"""
    horizon: int
    """Inner steps of the measured run."""
    method: str
    """Of Hessian-vector products."""
    weights: int
    world_size: int
    device: str
    torch_version: str
    versions: dict[str, str | None] = field(default_factory=dict)
    """Of Python, PyTorch, CUDA and this package."""
    networks: Mapping[str, NetworkFigures] = field(default_factory=dict)
    """Per network what a step costs with k tangents, by each method."""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)

    def _repr_html_(self) -> str:
        return as_html(partial(print_bench, self))


def print_bench(report: BenchReport, console: Console) -> None:
    """The steps of each network, and the ratios with what they mean."""
    paragraph(console, f"[bold]Bench[/bold]  {report.world_size} x {report.device}, PyTorch {report.torch_version}")
    for name, figures in report.networks.items():
        console.print()
        _print_network(name, figures, console)
    console.print()
    _print_ratios(report, console)


def _print_network(name: str, figures: NetworkFigures, console: Console) -> None:
    paragraph(
        console,
        f"[bold]{escape(name)}[/bold]  {counted(figures.weights, 'weight')}; a plain step takes "
        f"{duration(figures.plain_ms / 1000)} and {counted(figures.plain_kernels, 'kernel')}. A step with k tangents:",
    )
    table = plain_table("method", "compiled", "k", "median", "quartiles", "over limit", "kernels", "compile", "memory")
    for row in figures.steps:
        table.add_row(*_cells(row))
    console.print(table)
    for reason, names in figures.left_out.items():
        paragraph(console, f"note: not measured ({escape(reason)}): {', '.join(names)}")


def _cells(row: StepFigures) -> tuple[str, ...]:
    low, middle, high = (duration(milliseconds / 1000) for milliseconds in (row.q25, row.median_ms, row.q75))
    return (
        row.method,
        row.compile,
        str(row.k),
        middle,
        f"{low} - {high}",
        f"{row.over_limit:.2f}",
        ABSENT if row.kernels is None else f"{row.kernels:,}",
        ABSENT if row.compile_s is None else duration(row.compile_s),
        bytes_text(row.peak_bytes),
    )


def _print_ratios(report: BenchReport, console: Console) -> None:
    paragraph(
        console,
        f"An inner run of {report.horizon:,} steps, {counted(report.weights, 'weight')}, "
        f"{counted(report.tangents, 'tangent')} by {report.method}:",
    )
    table = plain_table("value", "figure", "meaning")
    table.columns[0].justify, table.columns[0].no_wrap = "right", True
    for column in table.columns[1:]:
        column.justify = "left"
    table.columns[2].no_wrap, table.columns[2].overflow = False, "fold"
    meanings = {
        "step_cost": (report.step_cost, ".2f", "time over plain steps x (1 + 2 tangents); 1 is the least possible"),
        "vs_sequential": (report.vs_sequential, ".2f", "times as fast as one double-backward pass per tangent"),
        "scaling_efficiency": (
            report.scaling_efficiency,
            ".2f",
            "speed-up by these ranks over the best possible; 1 is the best (needs several ranks)",
        ),
        "memory_growth": (report.memory_growth, ".4f", f"peak memory at {LONGER} times the horizon over 1 time"),
        **{
            f"precision_error {dtype}": (error, ".1e", "relative error of the hypergradients against float64")
            for dtype, error in report.precision_error.items()
        },
    }
    for name, (value, form, meaning) in meanings.items():
        table.add_row(ABSENT if value is None else format(value, form), name, meaning)
    table.add_row(duration(report.plain_seconds), "plain_seconds", "a plain training step here")
    console.print(table)
