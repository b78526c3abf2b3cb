"""The figure of a noise analysis: error against window width, and the hypergradients step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fds_dist.commands.figure_style import BLUE, STYLE, VERMILION, save_figure
from fds_dist.commands.noise.estimates import NoiseEstimate
from fds_dist.commands.noise.report import NoiseReport
from fds_dist.common.figures import lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLORS = {"non-greedy": BLUE, "greedy": VERMILION}
"""Two colors that also differ in gray."""

MARKERS = {"non-greedy": "o", "greedy": "s"}

ROW_SIZE = (9.0, 2.7)
"""Width and height of one hyperparameter's row, in inches."""


def plot_noise(report: NoiseReport, path: Path) -> None:
    """Writes the figure as `path` + .pdf and .png: one row of three panels per hyperparameter.

    Left: measured MSE_W with its standard errors, theorem 4.1's curve, and a ring around the best window. Middle and
    right: mean and standard deviation over runs of the non-greedy and the greedy hypergradient of each step.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(report.schedule)
    with mpl.rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=(ROW_SIZE[0], ROW_SIZE[1] * len(names) + 0.3), layout="constrained")
        rows = figure.subplots(len(names), 3, squeeze=False, width_ratios=(1.35, 1, 1))
        for name, (errors, *profiles) in zip(names, rows, strict=True):
            for estimate, profile in zip(report.of(name), profiles, strict=True):
                draw_errors(errors, estimate)
                draw_profile(profile, estimate)
            finish_errors(errors, report.of(name))
        add_legend(figure, report)
        lay_out(figure)
        for ending in (".pdf", ".png"):
            save_figure(figure, path.with_suffix(ending), dpi=200)


def draw_errors(axes: Axes, estimate: NoiseEstimate) -> None:
    """Measured errors, the theorem's curve over them, and the best window."""
    from matplotlib.patheffects import withStroke

    color, marker, best = COLORS[estimate.estimator], MARKERS[estimate.estimator], min(estimate.mse)
    points = {"fmt": marker, "markersize": 2.8, "elinewidth": 0.7, "color": color}
    axes.errorbar(estimate.windows, estimate.mse, estimate.mse_error, **points)
    axes.plot(estimate.windows, estimate.theorem, color=color, linewidth=1.2)
    axes.plot(estimate.best_window, best, "o", markersize=10, markerfacecolor="none", markeredgecolor=color)
    place = math.log(estimate.best_window) / math.log(max(estimate.windows))  # 0 at the left edge, 1 at the right one
    side, shift = ("left", -6) if place < 0.1 else ("right", 6) if place > 0.9 else ("center", 0)
    axes.annotate(
        f"W = {estimate.best_window:.0f}",
        (estimate.best_window, best),
        (shift, -9),
        textcoords="offset points",
        color=color,
        ha=side,
        va="top",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],  # keeps the text legible over a curve
    )


def finish_errors(axes: Axes, estimates: list[NoiseEstimate]) -> None:
    """Scales and labels of the left panel."""
    axes.set_xscale("log")
    if any(estimate.variance > 0 for estimate in estimates):
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.18)
    axes.set_xlabel("window W (inner steps)")
    axes.set_ylabel(f"mean squared error\n(loss / unit of {spoken(estimates[0].hyperparameter)})²")


def draw_profile(axes: Axes, estimate: NoiseEstimate) -> None:
    """Mean and standard deviation over runs, by step."""
    steps, mean, spread = np.arange(len(estimate.mean)), np.array(estimate.mean), np.array(estimate.spread)
    color = COLORS[estimate.estimator]
    axes.axhline(0, color="0.6", linewidth=0.6)
    axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.25, linewidth=0)
    axes.plot(steps, mean, color=color, linewidth=1)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes.set_xlabel("inner step")
    axes.set_ylabel(f"{estimate.estimator} hypergradient\n(loss / unit of {spoken(estimate.hyperparameter)})")


def add_legend(figure: Figure, report: NoiseReport) -> None:
    """One legend above all panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    estimators = [
        Line2D([], [], color=color, marker=MARKERS[estimator], label=estimator) for estimator, color in COLORS.items()
    ]
    figure.legend(
        handles=[
            *estimators,
            Line2D([], [], color="0.3", marker="o", markersize=3, linestyle="none", label="measured ± std. error"),
            Line2D([], [], color="0.3", label="theorem 4.1, c and ε at best W"),
            Line2D([], [], color="0.3", marker="o", markersize=9, fillstyle="none", linestyle="none", label="best W"),
            Patch(color="0.3", alpha=0.25, linewidth=0, label=f"± std. deviation, {report.runs} runs"),
        ],
        loc="outside upper center",
        ncols=6,
        fontsize=8,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def spoken(name: str) -> str:
    """A hyperparameter's name as words."""
    return name.replace("_", " ")
