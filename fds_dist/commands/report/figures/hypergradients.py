"""Hypergradients and their signs: a triangle per learned number and outer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.panels import COLORS, FAINT, SIZE, Panel, Points, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


DECADES = 6
"""Powers of ten with sizes of their own; smaller numbers are drawn as small as the smallest."""
CELL = 0.22
"""Inches between two triangles, where there is room."""
LARGEST = (5.0, 9.0)
"""The most inches for all columns, and for all rows."""
RASTER_FROM = 2000
"""From so many triangles on, the page holds them as one picture, which bounds its size."""


def hypergradients(runs: Sequence[RunContents]) -> list[Panel]:
    """A panel per run: triangles point up for positive and down for negative numbers, larger for larger numbers."""
    decades = _decades(np.concatenate([_values(run).ravel() for run in runs]))
    return [
        Panel(
            partial(_grid, run, label if len(runs) > 1 else "", decades),
            f"sign and size of every hypergradient of {label}, a row per learned number, a column per outer step",
            _size(run),
            keeps_size=True,
            points=_points(run),
        )
        for run, label in zip(runs, labels(runs), strict=True)
    ]


def _points(run: RunContents) -> list[Points]:
    """A line of values per row of triangles."""
    columns = range(len(run.records))
    return [
        Points(f"{element.name}[{element.place}]", columns, [row] * len(columns), values.tolist())
        for row, (element, values) in enumerate(zip(run.drawn, _values(run), strict=True))
    ]


def _cells(run: RunContents) -> tuple[float, float]:
    """Inches of a column and of a row."""
    columns, rows = max(1, len(run.records)), max(1, len(run.drawn))
    return min(CELL, LARGEST[0] / columns), min(CELL, LARGEST[1] / rows)


def _size(run: RunContents) -> tuple[float, float]:
    (width, height), longest = _cells(run), max(map(len, run.names), default=0)
    used = 0.6 + 0.06 * longest + width * len(run.records), 1.1 + height * len(run.drawn)
    return max(1.3 * SIZE[0], used[0]), used[1]


def _values(run: RunContents) -> np.ndarray:
    """Hypergradients [elements, outer steps]."""
    return np.array([[element.of(record.hypergradients) for record in run.records] for element in run.drawn])


def _spread(run: RunContents) -> np.ndarray:
    """Standard errors over the replicas [elements, outer steps]; NaN for a single replica."""
    size = math.sqrt(run.ranks_along("replica"))
    spreads = [record.hypergradient_spread or {} for record in run.records]
    return np.array([[element.of(spread) / size for spread in spreads] for element in run.drawn])


def _grid(run: RunContents, title: str, decades: tuple[int, int], ax: Axes) -> None:
    values, (low, high) = _values(run), decades
    unsure = np.abs(values) < _spread(run)  # False where the standard error is NaN
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((np.log10(np.abs(values)) - low) / (high - low), 0.0, 1.0)
    largest = 72 * 0.9 * min(_cells(run))
    sizes = np.where(np.isfinite(values), _diameter(share, largest), 0.6 * largest) ** 2
    up, down, lost = values > 0, values < 0, ~np.isfinite(values)
    for mask, marker, color, face, label in (
        (up & ~unsure, "^", COLORS[1], COLORS[1], "positive"),
        (down & ~unsure, "v", COLORS[0], COLORS[0], "negative"),
        (up & unsure, "^", COLORS[1], "none", "positive, unsure"),
        (down & unsure, "v", COLORS[0], "none", "negative, unsure"),
        (values == 0, "d", FAINT, FAINT, "0"),
        (lost, "X", FAINT, FAINT, "not finite"),
    ):
        if mask.any():
            rows, columns = np.nonzero(mask)
            style: dict[str, Any] = {"marker": marker, "edgecolor": color, "facecolor": face, "linewidths": 0.8}
            ax.scatter(columns, rows, s=sizes[mask], rasterized=mask.size > RASTER_FROM, **style)
            ax.scatter([], [], s=(0.6 * largest) ** 2, label=label, **style)
    for decade in sorted({low, high}):
        size = _diameter(np.array(float(decade > low)), largest) ** 2
        ax.scatter([], [], s=size, marker="^", color=FAINT, label=f"±{short(10.0**decade)}")
    _axes(run, ax)
    ax.set_title(title)


def _diameter(share: np.ndarray, largest: float) -> np.ndarray:
    """Diameters in points."""
    return largest * (0.3 + 0.7 * share)


def _decades(values: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest power of ten with a size of its own."""
    finite = np.abs(values[np.isfinite(values) & (values != 0)])
    if not finite.size:
        return -1, 0
    low, high = math.floor(np.log10(finite.min())), math.ceil(np.log10(finite.max()))
    return max(low, high - DECADES) if low < high else high - 1, high


def _axes(run: RunContents, ax: Axes) -> None:
    """Labels as many rows and columns as there is room for."""
    every, stride = (max(1, math.ceil(room / cell)) for room, cell in zip((0.2, 0.13), _cells(run), strict=True))
    blocks = [run.drawn_of(name) for name in run.names]
    firsts = [*accumulate(map(len, blocks), initial=0)]
    names = {
        first + place: element.name if len(block) == 1 else f"{element.name}[{element.place}]"
        for first, block in zip(firsts, blocks, strict=False)
        for place, element in enumerate(block)
        if place % stride == 0 and (place == 0 or place + stride <= len(block))
    }
    ax.set_yticks(list(names), list(names.values()))
    steps = [record.outer_step for record in run.records]
    ax.set_xticks(range(0, len(steps), every), [str(step) for step in steps[::every]])
    ax.tick_params(length=0)
    ax.set(xlabel="outer step", xlim=(-0.6, len(steps) - 0.4), ylim=(len(run.drawn) - 0.4, -0.6))
    for spine in ax.spines.values():
        spine.set_visible(False)
    for first in firsts[1:-1]:
        ax.axhline(first - 0.5, color=FAINT, linewidth=0.5)
