"""Time, load and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.figures.lines import series, styled
from fds_dist.commands.report.panels import COLORS, FAINT, Panel, value_axis, whole_numbers
from fds_dist.common.words import byte_unit, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def costs(runs: Sequence[RunContents]) -> list[Panel]:
    """Time of every outer step; for one run on several ranks also load and memory of each rank."""
    panels = [
        Panel(partial(_durations, runs), "time of each outer step"),
        Panel(partial(_best_so_far, runs), "best validation loss so far over time"),
    ]
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


def _best_so_far(runs: Sequence[RunContents], ax: Axes) -> None:
    second, unit = time_unit(max(run.seconds for run in runs))
    for run, style in styled(runs):
        times = [seconds / second for seconds in accumulate(record.seconds for record in run.records)]
        losses = [record.val_loss if math.isfinite(record.val_loss) else math.inf for record in run.records]
        best = [loss if math.isfinite(loss) else math.nan for loss in accumulate(losses, min)]
        ax.plot(times, best, drawstyle="steps-post", **style)
    value_axis(ax, (record.val_loss for run in runs for record in run.records))
    ax.set(xlabel=f"time ({unit})", ylabel="best loss so far")
    ax.set_xlim(left=0)


def _durations(runs: Sequence[RunContents], ax: Axes) -> None:
    longest = max(record.seconds for run in runs for record in run.records)
    second, unit = time_unit(longest)
    for run, style in styled(runs):
        ax.plot(*series(run, lambda record: record.seconds / second), **style)
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
