"""What the page shows under the pointer: the values of a panel's lines and bars, and where they lie in its picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fds_dist.commands.report.panels import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIGITS = 4
"""Significant digits of a value."""
MOST_POINTS = 20_000
"""Of a panel with more points the pointer shows nothing: they would make up most of the file."""


def readings(ax: Axes, points: Sequence[Points], height: float) -> dict[str, Any] | None:
    """The values of one panel, as JSON values; None where there are none.

    Args:
        ax: drawn axes of a figure with 72 dots per inch, the unit of an SVG's view box.
        points: see `Panel.points`.
        height: of the figure in dots; an SVG's y-axis points down.

    Returns:
        "xs": values of the x-axis in ascending order, and "px": where they lie. "lines": each with its "name", its
        values "ys" and places "py" for as many of the xs, null where the line has none.
    """
    lines = [*points] or [*_drawn(ax)]
    if not lines or sum(len(line.xs) for line in lines) > MOST_POINTS:
        return None
    xs = sorted({float(x) for line in lines for x in line.xs})
    places = {x: index for index, x in enumerate(xs)}
    low, high = sorted(ax.get_ylim())
    rows = []
    for line in lines:
        values: list[float | None] = [None] * len(xs)
        heights: list[int | None] = [None] * len(xs)
        pixels = height - ax.transData.transform([*zip(line.xs, line.ys, strict=True)])[:, 1]
        shown = line.ys if line.values is None else line.values
        for x, y, value, pixel in zip(line.xs, line.ys, shown, pixels, strict=True):
            if math.isfinite(value) and low <= y <= high:
                values[places[float(x)]] = _rounded(value)
                heights[places[float(x)]] = round(float(pixel))
        rows.append({"name": line.name, "ys": values, "py": heights})
    px = ax.transData.transform([(x, low) for x in xs])[:, 0]
    return {
        "x": ax.get_xlabel(),
        "y": ax.get_ylabel() or ax.get_title(loc="left"),
        "xs": [_rounded(x) for x in xs],
        "px": [round(float(x)) for x in px],
        "lines": rows,
    }


def _drawn(ax: Axes) -> Iterator[Points]:
    """The named lines and bars on the axes. An underscore before a name keeps a line out of the legend alone."""
    alone = len(ax.lines) == 1
    for line in ax.lines:
        label = str(line.get_label())
        if line.get_transform() != ax.transData or (label.startswith("_child") and not alone):
            continue
        name = "" if label.startswith("_child") else label.removeprefix("_")
        xs, ys = (np.asarray(data, dtype=float) for data in line.get_data())
        if xs.size:
            yield Points(name, xs.tolist(), ys.tolist())
    for bars in ax.containers:
        boxes: list[Any] = list(bars)
        name = str(bars.get_label())
        centers, heights = ([box.get_x() + box.get_width() / 2 for box in boxes], [box.get_height() for box in boxes])
        tops = [box.get_y() + box.get_height() for box in boxes]
        yield Points("" if name.startswith("_") else name, centers, tops, heights)


def _rounded(value: float) -> float:
    number = float(f"{value:.{DIGITS}g}")
    return int(number) if number == int(number) else number
