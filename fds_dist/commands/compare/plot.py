"""The comparison as a figure: the loss of each method's best λ on fresh seeds, over the compute spent."""

from __future__ import annotations

import math
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fds_dist.commands.compare.results import REFERENCE, Comparison
from fds_dist.commands.compare.rivals import RIVALS
from fds_dist.commands.figure_style import BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, save_figure
from fds_dist.common.figures import lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LINES = {
    "fds": (VERMILION, "-"),
    "greedy": (PURPLE, (0, (5, 1))),
    "cosine": (SKY, (0, (6, 1, 1, 1))),
    "linear": (SKY, "-"),
    "refined": (SKY, ":"),
    "schedule_free": (GREEN, "-"),
    "cosine_buckets": (SKY, "--"),
    "random": ("black", ":"),
    "tpe": (BLUE, "--"),
    "hyperband": (GREEN, "-."),
    "bohb": (ORANGE, (0, (3, 1, 1, 1, 1, 1))),
}
"""Color and dashes of each method's line."""


class Curve(NamedTuple):
    """A mean over repetitions as a step function of compute; NaN where a judging run diverged."""

    cost: list[float]
    mean: list[float]
    error: list[float]
    """Standard error of the mean; 0 for a single repetition."""


def judged_curve(comparison: Comparison, method: str) -> Curve | None:
    """The judged loss of the method's best so far, from the compute at which every repetition has a best.

    Each search chooses its best by its own measurements. The judged loss can therefore rise: some choices were luck.
    None if a repetition never has a best.
    """
    runs = comparison.runs_of(method)
    if not all(run.incumbents for run in runs):
        return None
    first = max(run.incumbents[0].cost for run in runs)
    last = max(run.cost for run in runs)
    costs = sorted({first, last} | {best.cost for run in runs for best in run.incumbents if best.cost > first})
    means, errors = [], []
    for cost in costs:
        losses = [[best.judged_loss for best in run.incumbents if best.cost <= cost][-1] for run in runs]
        finite = all(map(math.isfinite, losses))
        means.append(statistics.fmean(losses) if finite else math.nan)
        errors.append(statistics.stdev(losses) / math.sqrt(len(losses)) if finite and len(losses) > 1 else 0.0)
    return Curve(costs, means, errors)


def plot_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes `compare.pdf` and `compare.png` into `folder`; returns their paths."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    curves = {method: judged_curve(comparison, method) for method in comparison.methods}
    drawn = {method: curve for method, curve in curves.items() if curve is not None}
    limits = _limits(drawn)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.5, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for method, curve in drawn.items():
            _draw(axes, method, curve, limits[1])
        _frame(axes, limits)
        if drawn:
            axes.set_xlim(left=0.8 * min(_appears(curve, limits[1]) for curve in drawn.values()))
        _compute_axes(axes, comparison.horizon)
        paths = [Path(folder) / f"compare.{suffix}" for suffix in ("pdf", "png")]
        lay_out(figure)
        for path in paths:
            save_figure(figure, path, dpi=300)
    return paths


def _draw(axes: Axes, method: str, curve: Curve, top: float) -> None:
    """Draws a line, its band and its end point; for the reference also the level that the others have to reach."""
    color, dashes = LINES[method]
    cost, mean, error = map(np.asarray, curve)
    reference = method == REFERENCE
    order = 3 if reference else 2
    seen = mean <= top  # the band of a line above the figure would only hide other lines
    axes.fill_between(cost, mean - error, mean + error, where=seen, step="post", color=color, alpha=0.15, linewidth=0)
    axes.step(
        cost,
        mean,
        where="post",
        color=color,
        linestyle=dashes,
        linewidth=1.8 if reference else 1.2,
        label=RIVALS[method].label if method in RIVALS else method,
        zorder=order,
    )
    axes.plot(cost[-1:], mean[-1:], marker="o", markersize=3.5, color=color, zorder=order)
    if reference and math.isfinite(mean[-1]):
        axes.axhline(mean[-1], color=color, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)


def _frame(axes: Axes, limits: tuple[float, float]) -> None:
    """Sets the scales, the vertical axis and the legend."""
    axes.set_xscale("log")
    axes.set_ylabel("validation loss on fresh seeds")
    axes.grid(True, axis="y", linewidth=0.3, alpha=0.5)
    if all(map(math.isfinite, limits)):
        axes.set_ylim(*limits)
    if axes.has_data():
        axes.legend()


def _compute_axes(axes: Axes, horizon: int) -> None:
    """Labels the compute in training steps below and in training runs above. Below two decades, numbers are plain."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlabel("compute (plain training steps)")
    runs = axes.secondary_xaxis("top", functions=(partial(np.multiply, 1 / horizon), partial(np.multiply, horizon)))
    runs.set_xlabel("compute (training runs)")
    low, high = axes.get_xlim()
    for axis in (axes.xaxis, runs.xaxis):
        if high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.7g}"))
        axis.set_minor_formatter(NullFormatter())


def _appears(curve: Curve, top: float) -> float:
    """The compute at which a line comes into view."""
    return next((cost for cost, mean in zip(curve.cost, curve.mean, strict=True) if mean <= top), curve.cost[-1])


def _limits(curves: dict[str, Curve]) -> tuple[float, float]:
    """The vertical range, from the best answer to well above the worst, wherever the lines begin.

    (-inf, inf) if no answer is finite.
    """
    ends = [(curve.mean[-1], curve.error[-1]) for curve in curves.values() if math.isfinite(curve.mean[-1])]
    lowest = min((mean - error for mean, error in ends), default=0.0)
    highest = max((mean + error for mean, error in ends), default=0.0)
    room = highest - lowest
    return (lowest - 0.2 * room, highest + 1.5 * room) if room > 0 else (-math.inf, math.inf)
