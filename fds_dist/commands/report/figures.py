"""The figures of a report. Each is a list of panels, drawn from one run or from several; an empty list where there is
nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.panels import (
    COLORS,
    FAINT,
    INK,
    MOST_NUMBERED,
    Panel,
    bucket_color,
    number_lines,
    run_style,
    value_axis,
    whole_numbers,
)
from fds_dist.common.values import MOST_SHOWN, Row, flat, numbers_of
from fds_dist.common.words import byte_unit, time_unit
from fds_dist.tracking.records import OuterRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_OTHERS = 20
"""The most outer steps whose schedules are drawn beside the first, the last and the best."""
MOST_MARKED = 500
"""From so many points on, a panel's lines have no markers, which would make up most of the file."""

OUTER_STEPS: dict[str, dict[str, Any]] = {
    "others": {"color": FAINT, "linestyle": "-", "linewidth": 0.8, "zorder": 2},
    "first": {"color": INK, "linestyle": ":", "linewidth": 1.3, "zorder": 3},
    "last": {"color": COLORS[1], "linestyle": "--", "linewidth": 1.3, "zorder": 3},
    "best": {"color": COLORS[0], "linestyle": "-", "linewidth": 2.2, "zorder": 4},
}
"""The lines of a run's schedules."""

Draw = Callable[[Sequence[RunContents]], list[Panel]]


def schedules(runs: Sequence[RunContents]) -> list[Panel]:
    """Values over the horizon: of each outer step for one run, the best of each for several."""
    names = dict.fromkeys(name for run in runs for name in run.names)
    return [Panel(partial(_schedule, runs, name), f"{name} over the share of the horizon") for name in names]


def _schedule(runs: Sequence[RunContents], name: str, ax: Axes) -> None:
    lines = _outer_steps(runs[0]) if len(runs) == 1 else _best_of_each(runs)
    drawn = [line for line in lines if name in line.record.hyperparameters]
    for run, record, style in drawn:
        values, shape = record.hyperparameters[name], run.shape(name)
        columns = np.array([*map(numbers_of, values)], dtype=float).T  # [size, buckets]
        ends = [float(end) for bucket in range(len(values)) for end in shape.place(bucket)]  # alike for a knot
        for column in columns[:: -(-len(columns) // MOST_SHOWN)]:
            ax.plot(ends, np.repeat(column, 2), **style)
    ax.set(title=name, ylabel="value", xlabel="share of the horizon", xlim=(0, 1))
    value_axis(ax, (number for line in drawn for number in flat(line.record.hyperparameters[name])))


class _Line(NamedTuple):
    """The schedule of one outer step, to be drawn."""

    run: RunContents
    record: OuterRecord
    style: dict[str, Any]


def _outer_steps(run: RunContents) -> list[_Line]:
    """Outer steps with the styles of their lines, from back to front: others, first and last, best."""
    roles = {"first": run.records[0], "last": run.records[-1], "best": run.best}
    stride = -(-len(run.records) // MOST_OTHERS)
    lines = []
    for index, record in enumerate(run.records):
        words = [word for word, chosen in roles.items() if chosen is record]
        if not words and index % stride:
            continue
        label = f"{', '.join(words)}: step {record.outer_step}" if words else "others"
        lines.append(_Line(run, record, {**OUTER_STEPS[words[-1] if words else "others"], "label": label}))
    return sorted(lines, key=lambda line: line.style["zorder"])


def _best_of_each(runs: Sequence[RunContents]) -> list[_Line]:
    lines = []
    for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        style = {key: value for key, value in run_style(index).items() if not key.startswith("marker")}
        if run.best is not None:
            lines.append(_Line(run, run.best, {**style, "linewidth": 1.8, "label": label}))
    return lines


def validation(runs: Sequence[RunContents]) -> list[Panel]:
    """Loss and accuracy over the outer steps, and the best loss so far over time."""
    panels = [Panel(partial(_losses, runs), "validation loss over the outer steps")]
    if any(record.val_accuracy is not None for run in runs for record in run.records):
        panels.append(Panel(partial(_accuracies, runs), "validation accuracy over the outer steps"))
    return [*panels, Panel(partial(_best_so_far, runs), "best validation loss so far over time")]


def _losses(runs: Sequence[RunContents], ax: Axes) -> None:
    for run, style in _styled(runs):
        ax.plot(*_series(run, lambda record: record.val_loss), **style)
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
    for run, style in _styled(runs):
        ax.plot(*_series(run, lambda record: 100 * _number(record.val_accuracy)), **style)
    ax.set(xlabel="outer step", ylabel="validation accuracy (%)")
    whole_numbers(ax)


def _best_so_far(runs: Sequence[RunContents], ax: Axes) -> None:
    second, unit = time_unit(max(run.seconds for run in runs))
    for run, style in _styled(runs):
        times = [seconds / second for seconds in accumulate(record.seconds for record in run.records)]
        losses = [record.val_loss if math.isfinite(record.val_loss) else math.inf for record in run.records]
        best = [loss if math.isfinite(loss) else math.nan for loss in accumulate(losses, min)]
        ax.plot(times, best, drawstyle="steps-post", **style)
    value_axis(ax, (record.val_loss for run in runs for record in run.records))
    ax.set(xlabel=f"time ({unit})", ylabel="best loss so far")
    ax.set_xlim(left=0)


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
        label = f"{what} {bucket}" if named else None
        ax.plot(steps, row, color=bucket_color(bucket, count), label=label, **style)
    value_axis(ax, rows.ravel())
    ax.set(title=f"{title} (all {count} {what}s alike)" if same else title, xlabel="outer step", ylabel=kind)
    whole_numbers(ax)
    if 1 < count <= MOST_NUMBERED and not same:
        number_lines(ax, steps[-1], {bucket: float(row[-1]) for bucket, row in enumerate(rows)})


def costs(runs: Sequence[RunContents]) -> list[Panel]:
    """Time of every outer step; for one run on several ranks also load and memory of each rank."""
    panels = [Panel(partial(_durations, runs), "time of each outer step")]
    if len(runs) > 1:
        return panels
    run, last = runs[0], runs[0].records[-1]
    plan = run.plan()
    if last.world_size > 1 and last.rank_seconds:
        panels.append(Panel(partial(_load, run), "time that each rank worked and waited for the others"))
    if last.world_size > 1 and last.rank_peak_bytes:
        panels.append(Panel(partial(_memory, last.rank_peak_bytes, "rank", "peak memory"), "peak memory of each rank"))
    if plan is not None and len(plan.owned) > 1:
        planned = [plan.cost(place) / plan.horizon for place in range(len(plan.owned))]
        panels.append(Panel(partial(_planned_load, planned), "planned load of each rank of the tangent axis"))
        if (memory := run.tangent_bytes(plan)) is not None:
            draw = partial(_memory, memory, "place on the tangent axis", "tangents")
            panels.append(Panel(draw, "memory of the tangents on each rank of the tangent axis"))
    return panels


def _durations(runs: Sequence[RunContents], ax: Axes) -> None:
    longest = max(record.seconds for run in runs for record in run.records)
    second, unit = time_unit(longest)
    for run, style in _styled(runs):
        ax.plot(*_series(run, lambda record: record.seconds / second), **style)
    ax.set(xlabel="outer step", ylabel=f"time of an outer step ({unit})", ylim=(0, 1.1 * longest / second or 1))
    whole_numbers(ax)


def _load(run: RunContents, ax: Axes) -> None:
    """Draws the time over the outer steps that ran on as many ranks as the last one."""
    size = run.records[-1].world_size
    records = [record for record in run.records if record.rank_seconds and len(record.rank_seconds) == size]
    second, unit = time_unit(sum(record.seconds for record in records))
    busy = np.array([record.rank_seconds for record in records]).sum(axis=0) / second
    idle = np.maximum(0, sum(record.seconds for record in records) / second - busy)
    ax.bar(range(size), busy, color=COLORS[0], label="working")
    ax.bar(range(size), idle, bottom=busy, color="none", edgecolor=FAINT, hatch="////", label="waiting for others")
    ax.set(xlabel="rank", ylabel=f"time ({unit})")
    _few_whole_numbers(ax, size)


def _planned_load(costs: Sequence[float], ax: Axes) -> None:
    ax.bar(range(len(costs)), costs, color=COLORS[2])
    ax.set(xlabel="place on the tangent axis", ylabel="plain steps per step")
    _few_whole_numbers(ax, len(costs))


def _memory(counts: Sequence[int], place: str, what: str, ax: Axes) -> None:
    byte, unit = byte_unit(max(counts))
    ax.bar(range(len(counts)), [count / byte for count in counts], color=COLORS[3])
    ax.set(xlabel=place, ylabel=f"{what} ({unit})")
    _few_whole_numbers(ax, len(counts))


def _few_whole_numbers(ax: Axes, count: int) -> None:
    whole_numbers(ax)
    ax.set_xlim(-0.75, count - 0.25)  # otherwise a single bar would fill the axes


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
        values = [factor * _number(epoch.get(key)) for epoch in epochs]
        ax.plot([epoch["epoch"] + 1 for epoch in epochs], values, **style)
    ax.set(xlabel="epoch", ylabel=label)
    whole_numbers(ax)


def _styled(runs: Sequence[RunContents]) -> list[tuple[RunContents, dict[str, Any]]]:
    """Each run with the style of its line; a single run has no label."""
    if len(runs) == 1:
        return [(runs[0], run_style(0))]
    return [
        (run, {**run_style(index), "label": label})
        for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
    ]


def _series(run: RunContents, of: Callable[[OuterRecord], float]) -> tuple[list[int], list[float]]:
    return [record.outer_step for record in run.records], [of(record) for record in run.records]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
