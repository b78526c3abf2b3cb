"""The figures of a report. Colors are Okabe and Ito's, which the color-blind tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fds_dist.report.contents import RunContents
from fds_dist.tracking.records import OuterRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
WIDTH = 8.0
"""Inches of a figure."""
ROW = 2.3
"""Inches of a row of panels."""
INK = "#010203"
"""Stands for the color of text and axes; the page replaces it by that of its own text, light or dark."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

Draw = Callable[[Sequence[RunContents]], "Figure"]


def schedules(runs: Sequence[RunContents]) -> Figure:
    """Values over the horizon: of each outer step for one run, the best of each for several."""
    names = list(dict.fromkeys(name for run in runs for name in _names(run)))
    figure, axes = _grid(len(names))
    for name, ax in zip(names, axes, strict=True):
        for index, run in enumerate(runs):
            shown = run.records if len(runs) == 1 else [record for record in [run.best] if record]
            for position, record in enumerate(shown):
                if name not in record.hyperparameters:
                    continue
                best = record is run.best
                style: dict[str, Any] = (
                    {"color": COLORS[index % len(COLORS)], "linewidth": 2, "zorder": 3}
                    if best
                    else {"color": "#888888", "alpha": 0.25 + 0.5 * position / len(shown), "linewidth": 1}
                )
                label = (f"best (outer step {record.outer_step})" if len(runs) == 1 else run.name) if best else None
                values = record.hyperparameters[name]
                ax.stairs(values, np.linspace(0, 1, len(values) + 1), baseline=None, label=label, **style)
        ax.set(ylabel=name, xlabel="share of the horizon", xlim=(0, 1))
    _legend(figure, axes)
    return figure


def paths(runs: Sequence[RunContents]) -> Figure:
    """Every bucket over the outer steps."""
    return _per_bucket(runs[0], lambda record: record.hyperparameters, log=False)


def step_sizes(runs: Sequence[RunContents]) -> Figure:
    """The outer optimizer's step of every bucket."""
    return _per_bucket(runs[0], lambda record: record.step_sizes, log=True, prefix="step of ")


def hypergradients(runs: Sequence[RunContents]) -> Figure:
    """Sign and size of every hypergradient, a row per learned number."""
    from matplotlib.figure import Figure

    run = runs[0]
    rows = [[record.hypergradients[name][bucket] for record in run.records] for name, bucket in run.elements]
    values = np.array(rows, dtype=float)
    height = min(12.0, 1.2 + 0.22 * len(rows))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ax = figure.subplots()
    finite = np.abs(values[np.isfinite(values) & (values != 0)])
    low, high = (math.floor(np.log10(finite.min())), math.ceil(np.log10(finite.max()))) if finite.size else (-1, 1)
    low = max(low, high - 8)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.clip((np.log10(np.abs(values)) - low) / max(1, high - low), 0.0, 1.0)
    shade = np.where(values == 0, 0.0, np.sign(values) * (0.15 + 0.85 * size))
    image = ax.imshow(shade, cmap="PuOr", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    if values.size <= 400:
        _mark_signs(ax, values)
    ax.set(xlabel="outer step", xticks=range(len(run.records)), yticks=range(len(rows)))
    ax.set_xticklabels([str(record.outer_step) for record in run.records])
    ax.set_yticklabels([f"{name}[{bucket}]" for name, bucket in run.elements], fontsize=8)
    bar = figure.colorbar(image, ax=ax, ticks=(-1, -0.15, 0, 0.15, 1))
    bar.ax.set_yticklabels([f"−1e{high}", f"−1e{low}", "0", f"1e{low}", f"1e{high}"])
    bar.set_label("hypergradient (+ lowers the value)")
    return figure


def _mark_signs(ax: Axes, values: np.ndarray) -> None:
    for row, numbers in enumerate(values):
        for column, number in enumerate(numbers):
            sign = "×" if not math.isfinite(number) else "+" if number > 0 else "−" if number < 0 else "0"
            ax.text(column, row, sign, ha="center", va="center", fontsize=7, color="#555555")


def validation(runs: Sequence[RunContents]) -> Figure:
    """Validation loss and accuracy over the outer steps."""
    with_accuracy = any(record.val_accuracy is not None for run in runs for record in run.records)
    figure, axes = _grid(2 if with_accuracy else 1)
    for index, run in enumerate(runs):
        style: dict[str, Any] = {
            "color": COLORS[index % len(COLORS)],
            "linestyle": LINES[index // len(COLORS) % len(LINES)],
            "marker": "o",
            "markersize": 3.5,
        }
        steps = [record.outer_step for record in run.records]
        axes[0].plot(steps, [record.val_loss for record in run.records], label=run.name, **style)
        if run.best is not None:
            axes[0].plot([run.best.outer_step], [run.best.val_loss], "o", ms=9, mfc="none", color=style["color"])
        if with_accuracy:
            accuracies = [math.nan if r.val_accuracy is None else 100 * r.val_accuracy for r in run.records]
            axes[1].plot(steps, accuracies, **style)
    axes[0].set(xlabel="outer step", ylabel="validation loss")
    losses = [r.val_loss for run in runs for r in run.records if math.isfinite(r.val_loss) and r.val_loss > 0]
    if losses and max(losses) > 5 * min(losses):
        axes[0].set_yscale("log")
    if with_accuracy:
        axes[1].set(xlabel="outer step", ylabel="validation accuracy (%)")
    for ax in axes:
        _whole_numbers(ax)
    if len(runs) > 1:
        _legend(figure, axes)
    return figure


def costs(runs: Sequence[RunContents]) -> Figure:
    """Seconds of every outer step; load and tangent memory of every rank."""
    run = runs[0]
    plan = run.plan()
    memory = run.tangent_bytes(plan) if plan else None
    figure, axes = _grid(1 + (plan is not None) + (memory is not None), columns=3)
    axes[0].bar(
        [record.outer_step for record in run.records], [record.seconds for record in run.records], color=COLORS[0]
    )
    axes[0].set(xlabel="outer step", ylabel="time (s)")
    if plan is not None:
        places = range(len(plan.owned))
        axes[1].bar(places, [plan.cost(place) / plan.horizon for place in places], color=COLORS[1])
        axes[1].set(xlabel="rank of the tangent axis", ylabel="plain steps per step")
        if memory is not None:
            axes[2].bar(places, [count / 2**20 for count in memory], color=COLORS[2])
            axes[2].set(xlabel="rank of the tangent axis", ylabel="tangents (MiB)")
    for ax in axes:
        _whole_numbers(ax)
    return figure


def retraining(runs: Sequence[RunContents]) -> Figure:
    """Test figures after every epoch of a training with the learned schedule."""
    run = runs[0]
    figure, axes = _grid(2)
    for index, (seed, epochs) in enumerate(run.retrained.items()):
        color = COLORS[index % len(COLORS)]
        numbers = [epoch["epoch"] + 1 for epoch in epochs]
        axes[0].plot(numbers, [_number(epoch.get("test_loss")) for epoch in epochs], color=color, label=f"seed {seed}")
        axes[1].plot(numbers, [100 * _number(epoch.get("test_accuracy")) for epoch in epochs], color=color)
    axes[0].set(xlabel="epoch", ylabel="test loss")
    axes[1].set(xlabel="epoch", ylabel="test accuracy (%)")
    _legend(figure, axes)
    return figure


def _names(run: RunContents) -> list[str]:
    return list(run.records[0].hyperparameters) if run.records else []


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _per_bucket(
    run: RunContents, of: Callable[[OuterRecord], dict[str, list[float]]], log: bool, prefix: str = ""
) -> Figure:
    """A panel per hyperparameter, a line per bucket from the first (dark) to the last (light)."""
    import matplotlib as mpl

    names = _names(run)
    figure, axes = _grid(len(names))
    steps = [record.outer_step for record in run.records]
    for name, ax in zip(names, axes, strict=True):
        buckets = len(run.records[0].hyperparameters[name])
        for bucket in range(buckets):
            color = mpl.colormaps["viridis"](0.9 * bucket / max(1, buckets - 1))
            values = [of(record).get(name, [math.nan] * buckets)[bucket] for record in run.records]
            label = f"bucket {bucket}" if bucket in (0, buckets - 1) and buckets > 1 else None
            ax.plot(steps, values, color=color, linewidth=1.4, label=label)
        if log and any(value > 0 for record in run.records for value in of(record).get(name, [])):
            ax.set_yscale("log")
        ax.set(xlabel="outer step", ylabel=prefix + name)
        _whole_numbers(ax)
        if buckets > 1:
            ax.legend(fontsize=7)
    return figure


def _grid(panels: int, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` panels of the same size, in rows."""
    from matplotlib.figure import Figure

    panels = max(1, panels)
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH, ROW * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def _whole_numbers(ax: Axes) -> None:
    """Ticks of the x-axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(4, len(found)), fontsize=8)
