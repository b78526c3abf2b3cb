"""Schedules over the training run: the result of a search, and the values of its outer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.figures.lines import OUTER_STEPS, name_others, outer_steps, plain, styled
from fds_dist.commands.report.panels import COLORS, INK, MAIN_SIZE, PURPLE, Panel, Points, scale_axis
from fds_dist.common.values import MOST_SHOWN, Row, flat, numbers_of
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.shapes import Shape
from fds_dist.schedule.starts import mean_cosine

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHARE = "share of the training run"
SHOWN = 101
"""Places at which the pointer reads a schedule."""

RESULT_STYLE: dict[str, dict[str, Any]] = {
    "start": {"color": INK, "linestyle": ":", "linewidth": 1.3, "zorder": 2},
    "cosine": {"color": PURPLE, "linestyle": "--", "linewidth": 1.3, "zorder": 3},
    "result": {"color": COLORS[0], "linestyle": "-", "linewidth": 2.4, "zorder": 4},
}
RESULT_OF = {
    "last": "result: last update",
    "average": "result: average",
    "best": "result: best",
    "start": "result: start",
}
SAME_PEAK = "cosine, same peak"
COSINE = ("lr",)
"""The hyperparameters whose usual schedule is a cosine to 0."""


class Line(NamedTuple):
    """One schedule, to be drawn."""

    values: Mapping[str, Row]
    shape: Callable[[str], Shape]
    """By name."""
    style: dict[str, Any]

    def columns(self, name: str) -> np.ndarray:
        """[shown, buckets] The values; of a value of many numbers, some."""
        columns = np.array([*map(numbers_of, self.values[name])], dtype=float).T
        return columns[:: -(-len(columns) // MOST_SHOWN)]

    def ends(self, name: str) -> np.ndarray:
        """[2 · buckets] Where each value begins and ends in the run, from 0 to 1: alike for a knot."""
        shape = self.shape(name)
        return np.array([float(end) for bucket in range(len(self.values[name])) for end in shape.place(bucket)])


def result(runs: Sequence[RunContents]) -> list[Panel]:
    """The schedule to use over the epochs of a run, the start and a cosine beside it. A value that stays the same for
    the whole run needs no picture: see `constants`."""
    run = runs[0]
    if run.result is None:
        return []
    start = run.records[0].hyperparameters
    lines = [Line(start, run.shape, RESULT_STYLE["start"] | {"label": "start"})]
    lines.append(Line(run.result.values, run.result.shape, RESULT_STYLE["result"] | {"label": "result"}))
    length, unit = run.length(run.result.horizon)
    names = [name for name in run.result.values if name not in constants(run)]
    return [_panel(run, name, lines, length, unit, base_of(name) in COSINE) for name in names]


def constants(run: RunContents) -> dict[str, tuple[float, float]]:
    """The learned numbers that hold for the whole run: the start's and the result's."""
    start, values = run.records[0].hyperparameters if run.records else {}, run.result.values if run.result else {}
    return {
        name: (start[name][0], row[0])
        for name, row in values.items()
        if len(row) == 1 and isinstance(row[0], float) and len(start.get(name, ())) == 1
    }


def schedules(runs: Sequence[RunContents]) -> list[Panel]:
    """Values over the run: of each outer step and the result for one search, the result of each for several."""
    if len(runs) == 1:
        run = runs[0]
        lines = [Line(record.hyperparameters, run.shape, style) for record, style in outer_steps(run)]
        if run.result is not None:
            style = {**OUTER_STEPS["result"], "label": RESULT_OF[run.answer]}
            lines.append(Line(run.result.values, run.result.shape, style))
    else:
        lines = [_answer(run, plain(style)) for run, style in styled(runs)]
    names = dict.fromkeys(name for run in runs for name in run.names)
    logarithmic = {name: any(_is_log(run, name) for run in runs if name in run.names) for name in names}
    return [
        Panel(partial(_draw, name, lines, 1.0, SHARE, logarithmic[name]), f"{name} over the {SHARE}") for name in names
    ]


def _answer(run: RunContents, style: dict[str, Any]) -> Line:
    """The result of a run; before there is one, its best values."""
    if run.result is not None:
        return Line(run.result.values, run.result.shape, style)
    return Line((run.best or run.records[-1]).hyperparameters, run.shape, style)


def _panel(run: RunContents, name: str, lines: Sequence[Line], length: float, unit: str, cosine: bool) -> Panel:
    """The panel of one hyperparameter, with what the pointer shows."""
    shown = [line for line in lines if name in line.values]
    at = np.linspace(0, 1, SHOWN)
    points = []
    for line in shown:
        for entry, column in enumerate(columns := line.columns(name)):
            label = line.style["label"] + (f" [{entry}]" if len(columns) > 1 else "")
            values = np.interp(at, line.ends(name), np.repeat(column, 2))
            points.append(Points(label, (at * length).tolist(), values.tolist()))
    peak = max(flat(lines[-1].values[name])) if cosine else 0.0
    curve = np.array([peak * mean_cosine(x, x) for x in at])
    if peak > 0:
        points.append(Points(SAME_PEAK, (at * length).tolist(), curve.tolist()))

    def draw(ax: Axes) -> None:
        _draw(name, shown, length, unit, _is_log(run, name), ax)
        if peak > 0:
            bottom, top = ax.get_ylim()
            ax.plot(at * length, curve, **RESULT_STYLE["cosine"], label=SAME_PEAK)
            ax.set_ylim(bottom if ax.get_yscale() == "log" else 0, top)

    return Panel(draw, f"{name}: the result, the start over the {unit}s of a training run", MAIN_SIZE, points=points)


def _draw(name: str, lines: Sequence[Line], length: float, unit: str, log: bool, ax: Axes) -> None:
    shown = [line for line in lines if name in line.values]
    for line in shown:
        for column in line.columns(name):
            ax.plot(line.ends(name) * length, np.repeat(column, 2), **line.style)
    name_others(ax)
    ax.set(title=name, xlabel=unit, xlim=(0, length))
    ax.locator_params(axis="x", nbins=5)
    scale_axis(ax, base_of(name), [number for line in shown for number in flat(line.values[name])], log)


def _is_log(run: RunContents, name: str) -> bool:
    return run.moved(name) != name
