"""How sure the hypergradients are: how often their signs change, and how they compare with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.panels import Panel, run_style, value_axis, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def noise(runs: Sequence[RunContents]) -> list[Panel]:
    """The share of signs that changed since the outer step before; with several replicas also the median of
    |hypergradient| / standard error."""
    run = runs[0]
    panels = []
    if len(run.records) > 1:
        panels.append(Panel(partial(_changes, run), "share of hypergradients whose sign has changed"))
    if any(record.hypergradient_spread for record in run.records):
        panels.append(Panel(partial(_certainty, run), "hypergradients in standard errors over the replicas"))
    return panels


def _changes(run: RunContents, ax: Axes) -> None:
    steps = [record.outer_step for record in run.records][1:]
    for index, name in enumerate(run.names):
        signs = np.sign(
            [[element.of(record.hypergradients) for record in run.records] for element in run.elements_of(name)]
        )
        shares = 100 * np.mean(signs[:, 1:] * signs[:, :-1] < 0, axis=0)
        ax.plot(steps, shares, **run_style(index), label=name)
    ax.set(xlabel="outer step", ylabel="signs that changed (%)", ylim=(-3, 103))
    whole_numbers(ax)


def _certainty(run: RunContents, ax: Axes) -> None:
    root, medians = math.sqrt(run.ranks_along("replica")), []
    steps = [record.outer_step for record in run.records]
    for index, name in enumerate(run.names):
        elements = run.elements_of(name)
        values = np.array([[each.of(record.hypergradients) for record in run.records] for each in elements])
        spreads = [record.hypergradient_spread or {} for record in run.records]
        errors = np.array([[each.of(spread) / root for spread in spreads] for each in elements])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.median(np.abs(values) / errors, axis=0)
        ratios[~np.isfinite(ratios)] = math.nan
        medians += ratios.tolist()
        ax.plot(steps, ratios, **run_style(index), label=name)
    value_axis(ax, medians)
    ax.set(xlabel="outer step", ylabel="median |value| / error")
    whole_numbers(ax)
