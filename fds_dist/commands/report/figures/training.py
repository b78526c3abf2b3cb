"""Losses and accuracies: of the training runs of a search, and of its retraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.figures.lines import name_others, number, outer_steps, plain, series, styled
from fds_dist.commands.report.panels import Panel, run_style, value_axis, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _curves(runs: Sequence[RunContents], ax: Axes) -> None:
    if len(runs) == 1:
        lines = [(runs[0], record, style) for record, style in outer_steps(runs[0])]
        unit = runs[0].length(1)[1]
    else:
        lines = [(run, run.best, plain(style)) for run, style in styled(runs)]
        unit = "share of the training run"
    losses = []
    for run, record, style in lines:
        for curve in run.curves:
            if record is not None and curve.outer_step == record.outer_step:
                whole = 1 / curve.horizon if len(runs) > 1 else run.length(1)[0]
                ax.plot([step * whole for step in curve.steps], curve.train_losses, **style)
                losses += curve.train_losses
    name_others(ax)
    value_axis(ax, losses)
    ax.set(xlabel=unit, ylabel="training loss")
    ax.set_xlim(left=0)


def validation(runs: Sequence[RunContents]) -> list[Panel]:
    """The training loss during the training runs, and validation loss and accuracy over the outer steps.

    Of several runs, the training loss is that of the best training run of each.
    """
    panels = [Panel(partial(_losses, runs), "validation loss over the outer steps")]
    if any(run.curves for run in runs):
        panels.insert(0, Panel(partial(_curves, runs), "training loss during the training runs"))
    if any(record.val_accuracy is not None for run in runs for record in run.records):
        panels.append(Panel(partial(_accuracies, runs), "validation accuracy over the outer steps"))
    return panels


def _losses(runs: Sequence[RunContents], ax: Axes) -> None:
    for run, style in styled(runs):
        ax.plot(*series(run, lambda record: record.val_loss), **style)
        color = style["color"]
        if run.best is not None:
            ring = {"markersize": 8, "markerfacecolor": "none", "clip_on": False}
            ax.plot([run.best.outer_step], [run.best.val_loss], "o", color=color, **ring)
        if lost := [record.outer_step for record in run.records if not math.isfinite(record.val_loss)]:
            at_the_top = [0.97] * len(lost)
            ax.plot(lost, at_the_top, "x", color=color, label="not finite", transform=ax.get_xaxis_transform())
    value_axis(ax, (record.val_loss for run in runs for record in run.records))
    ax.set(xlabel="outer step", ylabel="validation loss")
    whole_numbers(ax)


def _accuracies(runs: Sequence[RunContents], ax: Axes) -> None:
    for run, style in styled(runs):
        ax.plot(*series(run, lambda record: 100 * number(record.val_accuracy)), **style)
    ax.set(xlabel="outer step", ylabel="validation accuracy (%)")
    whole_numbers(ax)


def retraining(runs: Sequence[RunContents]) -> list[Panel]:
    """Test loss and accuracy after every epoch of each retraining with the learned schedule."""
    kinds = (("test_loss", "test loss", 1.0), ("test_accuracy", "test accuracy (%)", 100.0))
    return [
        Panel(partial(_retrained, runs[0], key, label, factor), f"{label} of each retraining over its epochs")
        for key, label, factor in kinds
        if any(key in epoch for epochs in runs[0].retrained.values() for epoch in epochs)
    ]


def _retrained(run: RunContents, key: str, label: str, factor: float, ax: Axes) -> None:
    for index, (seed, epochs) in enumerate(run.retrained.items()):
        style = {**run_style(index), "markevery": (index, max(1, len(epochs) // 8)), "label": f"seed {seed}"}
        values = [factor * number(epoch.get(key)) for epoch in epochs]
        ax.plot([epoch["epoch"] + 1 for epoch in epochs], values, **style)
    ax.set(xlabel="epoch", ylabel=label)
    whole_numbers(ax)
