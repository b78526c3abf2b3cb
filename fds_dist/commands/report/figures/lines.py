"""What the lines of a figure stand for: a run of several, an outer step of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.panels import COLORS, FAINT, INK, Panel, run_style
from fds_dist.tracking.records import OuterRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[[Sequence[RunContents]], list[Panel]]

MOST_OTHERS = 20
"""The most outer steps that are drawn beside the first, the last and the best."""

OUTER_STEPS: dict[str, dict[str, Any]] = {
    "others": {"color": FAINT, "linestyle": "-", "linewidth": 0.8, "zorder": 2},
    "first": {"color": INK, "linestyle": ":", "linewidth": 1.3, "zorder": 3},
    "last": {"color": COLORS[1], "linestyle": "--", "linewidth": 1.3, "zorder": 3},
    "best": {"color": COLORS[0], "linestyle": "-", "linewidth": 2.2, "zorder": 4},
    "result": {"color": COLORS[2], "linestyle": "-.", "linewidth": 2.2, "zorder": 5},
}
"""The lines of a run's outer steps, and of its result."""


def outer_steps(run: RunContents) -> list[tuple[OuterRecord, dict[str, Any]]]:
    """Outer steps with the styles of their lines, from back to front: others, first and last, best."""
    roles = {"first": run.records[0], "last": run.records[-1], "best": run.best}
    stride = -(-len(run.records) // MOST_OTHERS)
    lines = []
    for index, record in enumerate(run.records):
        words = [word for word, chosen in roles.items() if chosen is record]
        if not words and index % stride:
            continue
        label = f"{', '.join(words)}: step {record.outer_step}" if words else f"_step {record.outer_step}"
        lines.append((record, {**OUTER_STEPS[words[-1] if words else "others"], "label": label}))
    return sorted(lines, key=lambda line: line[1]["zorder"])


def name_others(ax: Axes) -> None:
    """Gives the legend one entry for all lines of outer steps without a role; the pointer tells them apart."""
    if any(str(line.get_label()).startswith("_step") for line in ax.lines):
        ax.plot([], [], **OUTER_STEPS["others"], label="others")


def styled(runs: Sequence[RunContents]) -> list[tuple[RunContents, dict[str, Any]]]:
    """Each run with the style of its line; a single run has no label."""
    if len(runs) == 1:
        return [(runs[0], run_style(0))]
    return [
        (run, {**run_style(index), "label": label})
        for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
    ]


def plain(style: dict[str, Any]) -> dict[str, Any]:
    """The style of a line without markers."""
    return {key: value for key, value in style.items() if not key.startswith("marker")}


def series(run: RunContents, of: Callable[[OuterRecord], float]) -> tuple[list[int], list[float]]:
    """A number of each outer step, for `Axes.plot`."""
    return [record.outer_step for record in run.records], [of(record) for record in run.records]


def number(value: object) -> float:
    """`value`, or NaN where it is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan
