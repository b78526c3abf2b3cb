"""How values and step sizes move from one outer step to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.panels import (
    MOST_NUMBERED,
    Panel,
    bucket_color,
    number_lines,
    value_axis,
    whole_numbers,
)
from fds_dist.common.values import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_MARKED = 500
"""From so many points on, a panel's lines have no markers, which would make up most of the file."""


def paths(runs: Sequence[RunContents]) -> list[Panel]:
    """Every bucket's value over the outer steps."""
    run = runs[0]
    values = [record.hyperparameters for record in run.records]
    return [_bucket_panel(run, name, values, name, "value") for name in run.names]


def step_sizes(runs: Sequence[RunContents]) -> list[Panel]:
    """The outer optimizer's step of every bucket."""
    run = runs[0]
    values = [record.step_sizes for record in run.records]
    return [_bucket_panel(run, name, values, run.moved(name), "step") for name in run.names] if any(values) else []


def _bucket_panel(run: RunContents, name: str, values: Sequence[Mapping[str, Row]], title: str, kind: str) -> Panel:
    """A line per bucket of the hyperparameter over the outer steps, of which `values` holds one mapping each."""
    drawn = run.drawn_of(name)
    rows = np.array([[element.of(each) for each in values] for element in drawn], dtype=float)
    steps, what = [record.outer_step for record in run.records], "bucket" if drawn[0].size == 1 else "number"
    return Panel(
        partial(_bucket_lines, steps, rows, title, kind, what), f"{title}: {kind} of each {what} over the outer steps"
    )


def _bucket_lines(steps: Sequence[int], rows: np.ndarray, title: str, kind: str, what: str, ax: Axes) -> None:
    """Draws a line per row of `rows` [drawn, outer steps], its number at its end; one line where all rows agree."""
    count = len(rows)
    same = count > 1 and np.allclose(rows, rows[:1], rtol=1e-3, atol=0, equal_nan=True)  # less than the width of a line
    style: dict[str, Any] = {"linewidth": 1.3, "markersize": 2, "marker": "o" if rows.size < MOST_MARKED else ""}
    for bucket, row in enumerate(rows[:1] if same else rows):
        named = count > MOST_NUMBERED and bucket in (0, count - 1) and not same
        label = f"{'' if named else '_'}{what} {bucket}"
        ax.plot(steps, row, color=bucket_color(bucket, count), label=label, **style)
    value_axis(ax, rows.ravel())
    ax.set(title=f"{title} (all {count} {what}s alike)" if same else title, xlabel="outer step", ylabel=kind)
    whole_numbers(ax)
    if 1 < count <= MOST_NUMBERED and not same:
        number_lines(ax, steps[-1], {bucket: float(row[-1]) for bucket, row in enumerate(rows)})
