"""A schedule as a table and as a plot, for notebooks. Needs no torch; matplotlib only for the plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from fds_dist.common.console import as_html, plain_line, plain_table
from fds_dist.common.values import numbers_of, text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fds_dist.schedule.schedule import Schedule

MOST_BUCKETS = 12
"""A row of more values is shown without its middle."""

MOST_POINTS = 1000
"""Steps at which a longer schedule is drawn."""


def html(schedule: Schedule) -> str:
    """A row per hyperparameter: its values by bucket, or its fixed value."""
    table = plain_table("hyperparameter", "buckets", "values")
    table.columns[2].justify, table.columns[2].no_wrap = "left", False
    for name, row in schedule.values.items():
        texts = [text_of(value) for value in row]
        if len(texts) > MOST_BUCKETS:
            texts = [*texts[: MOST_BUCKETS // 2], "…", *texts[-MOST_BUCKETS // 2 :]]
        shape = f" ({schedule.shapes[name]})" if name in schedule.shapes else ""
        table.add_row(escape(name), f"{len(row)}{shape}", "  ".join(texts))
    for name, value in schedule.fixed.items():
        table.add_row(escape(name), "fixed", text_of(value))
    optimizer = schedule.optimizer.get("name")
    title = f"schedule over {schedule.horizon:,} steps" + (f" of {optimizer}" if optimizer else "")
    return as_html(lambda console: (plain_line(console, title), console.print(table)))


def plot(schedule: Schedule, ax: Axes | None = None) -> Axes:
    """Draws the learned hyperparameters over the steps; the axis is logarithmic where all values are above 0."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure().add_subplot()
    last, points = schedule.horizon - 1, min(schedule.horizon, MOST_POINTS)
    steps = sorted({round(last * point / max(1, points - 1)) for point in range(points)})
    values = [schedule.at(step) for step in steps]
    for name in schedule.values:
        rows = [numbers_of(at[name]) for at in values]
        for index in range(len(rows[0])):
            curve, label = [row[index] for row in rows], name if len(rows[0]) == 1 else f"{name}[{index}]"
            if name in schedule.shapes:
                ax.plot(steps, curve, label=label)
            else:
                ax.step([*steps, schedule.horizon], [*curve, curve[-1]], where="post", label=label)
    if all(number > 0 for row in schedule.values.values() for value in row for number in numbers_of(value)):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.legend()
    return ax
