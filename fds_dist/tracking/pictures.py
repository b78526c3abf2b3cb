"""The schedule as a picture, for dashboards: a line plot per hyperparameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

from fds_dist.common.figures import lay_out
from fds_dist.common.values import Row, numbers_of

PICTURES = 100
"""The most outer steps of a search whose schedule is drawn: evenly spread ones."""
MOST_PLOTS = 12
"""The hyperparameters that a picture shows, at the most: the first ones."""
MOST_LINES = 8
"""The lines of a hyperparameter whose values have several numbers."""
WIDE = 10.0
"""A hyperparameter whose largest value is at least so many times the smallest has a logarithmic axis."""
EQUAL = 0.01
"""Values that differ by less than this part of the largest are drawn as nearly a flat line, not as the whole axis."""

Places = Mapping[str, Sequence[tuple[float, float]]]
"""See `RunEnd.places`."""


def is_drawn(outer_step: int, outer_steps: int) -> bool:
    """Whether an outer step is among `PICTURES` of `outer_steps`."""
    return outer_step % -(-outer_steps // PICTURES) == 0


def schedule_png(schedule: Mapping[str, Row], places: Places) -> bytes:
    """A PNG file: the values of each hyperparameter over the part of the horizon on which they hold.

    Without pyplot, which would keep the figure and could open a window.
    """
    from matplotlib.figure import Figure

    names = list(schedule)[:MOST_PLOTS]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        values = [numbers_of(value)[:MOST_LINES] for value in schedule[name]]
        stretches = places.get(name) or [
            (index / len(values), (index + 1) / len(values)) for index in range(len(values))
        ]
        at = [place for stretch in stretches for place in stretch]
        for line in zip(*values, strict=True):
            axes.plot(at, [number for number in line for _ in range(2)], marker="." if at[0] == at[1] else None)
        numbers = [number for value in values for number in value]
        if min(numbers) > 0 and max(numbers) >= WIDE * min(numbers):
            axes.set_yscale("log")
        elif 0 < max(numbers) - min(numbers) < EQUAL * abs(max(numbers)):
            margin = EQUAL * abs(max(numbers))
            axes.set_ylim(min(numbers) - margin, max(numbers) + margin)
        axes.set(title=name, xlabel="part of the inner run", xlim=(0, 1))
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    lay_out(figure)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=80)
    return png.getvalue()
