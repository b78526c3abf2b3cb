"""Panels, the parts of a report's figures: the page shows them one by one, a file for a paper side by side.

A reader without color vision tells lines apart by dashes, markers, hatches, or the number at a line's end. Every color
has a contrast of at least 3 to 1 with the page's light and with its dark ground (WCAG 2.1, 1.4.11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fds_dist.commands.figure_style import BLUE, GREEN, PURPLE, VERMILION
from fds_dist.commands.figure_style import STYLE as BASE_STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK = "#010203"
"""Stands for the color of text and axes; the page replaces it by the color of its own text, light or dark."""
FAINT = "#8a8a8a"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, INK)
"""Those of the shared colors that stand out on a light and on a dark ground."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

RAMP = ("#440154", "#481c6e", "#453581", "#3d4d8a", "#34618d", "#2b748e", "#24878e", "#1f9a8a")
"""Colors from the first bucket to the last on a light ground: the darker part of viridis, ever lighter."""
DARK_RAMP = ("#2a788e", "#228d8d", "#1fa187", "#32b67a", "#5ac864", "#8ed645", "#c8e020", "#fde725")
"""The page replaces `RAMP` by these on a dark ground: the lighter part of viridis."""

SIZE = (2.3, 1.9)
"""Inches of a panel in print; three side by side fill a page of two columns, two a page of one."""
PAGE_WIDTH = 7.0
"""Inches that panels may take side by side in print."""
MOST_NUMBERED = 12
"""Up to so many lines, each has its number."""
LONGEST_LABEL = 32

STYLE: dict[Any, Any] = {
    **BASE_STYLE,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the page uses its own font
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a dollar sign in a name stays a dollar sign
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    draw: Callable[[Axes], None]
    """Draws on empty axes; labeled artists go to the legend."""
    alt: str
    """What the panel shows, for readers who cannot see it."""
    size: tuple[float, float] = SIZE
    """Inches, width and height."""


def compose(panels: Sequence[Panel], zoom: float = 1.0) -> Figure:
    """The panels in rows, with one legend above them.

    Args:
        zoom: factor for the size of the panels; their text keeps its size.
    """
    from matplotlib.figure import Figure

    width, height = (max(panel.size[axis] for panel in panels) * zoom for axis in (0, 1))
    columns = max(1, min(len(panels), int(PAGE_WIDTH * zoom / width)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, ax in zip(panels, axes, strict=False):
        panel.draw(ax)
    for unused in axes[len(panels) :]:
        unused.remove()
    _legend(figure, axes[: len(panels)])
    return figure


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, in as many columns as fit; the figure grows by its height."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if not handles:
        return
    texts = [label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}" for label in handles]
    inches = 0.45 + 0.065 * max(map(len, texts))
    columns = max(1, min(len(texts), int(figure.get_figwidth() / inches)))
    figure.legend(handles.values(), texts, loc="outside upper left", ncols=columns, borderaxespad=0.2)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(texts) // columns))


def run_style(index: int) -> dict[str, Any]:
    """Color, dashes and marker of one of several runs; twenty runs differ without color."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.4,
    }


def bucket_color(bucket: int, buckets: int) -> str:
    """The color of a bucket in `RAMP`, which goes from the first bucket to the last."""
    return RAMP[round((len(RAMP) - 1) * bucket / max(1, buckets - 1))]


def value_axis(ax: Axes, values: Iterable[float]) -> None:
    """Gives the y-axis plain numbers, and a logarithmic scale where positive `values` spread far."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < 8 * min(finite) < max(finite):
        ax.set_yscale("log")
        few = max(finite) < 2000 * min(finite)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """`0.05`, `5e-5`."""
    return f"{value:g}".replace("e-0", "e−").replace("e-", "e−").replace("e+0", "e")


def whole_numbers(ax: Axes) -> None:
    """Puts the ticks of the x-axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def number_lines(ax: Axes, x: float, ends: Mapping[int, float]) -> None:
    """Writes the number of each line at its end (x, y). Lines that end together share a text; texts do not overlap."""
    ax.autoscale_view()
    to_share = ax.transData + ax.transAxes.inverted()
    shares = {number: float(to_share.transform((x, y))[1]) for number, y in ends.items() if math.isfinite(y)}
    together: list[tuple[float, list[int]]] = []
    for number, share in sorted(shares.items(), key=lambda item: item[1]):
        if together and share - together[-1][0] < 0.02:
            together[-1][1].append(number)
        else:
            together.append((share, [number]))
    lowest = -math.inf
    for share, numbers in together:
        place = max(share, lowest)
        lowest = place + 0.085
        text = ",".join(map(str, sorted(numbers)))
        ax.annotate(text, (x, place), (4, 0), ("data", "axes fraction"), "offset points", va="center", fontsize=7)
