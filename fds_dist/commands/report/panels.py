"""Panels, the parts of a report's figures: the page shows them one by one, a file for a paper side by side.

A reader without color vision tells lines apart by dashes, markers, hatches, or the number at a line's end. Every color
has a contrast of at least 3 to 1 with the page's light and with its dark ground (WCAG 2.1, 1.4.11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fds_dist.commands.figure_style import BLUE, GREEN, PURPLE, VERMILION
from fds_dist.commands.figure_style import STYLE as BASE_STYLE
from fds_dist.common.domain import UNIT_INTERVAL

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
MAIN_SIZE = (3.2, 1.7)
"""Inches of a panel that a reader looks at first."""
LONGEST_LABEL = 32
UNIT_TICKS = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Ticks of an axis of log(1 − v)."""

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


class Points(NamedTuple):
    """A line whose values the page shows under the pointer."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    """Where they lie on the axes."""
    values: Sequence[float] | None = None
    """What is shown; None: `ys`."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    draw: Callable[[Axes], None]
    """Draws on empty axes; labeled artists go to the legend."""
    alt: str
    """What the panel shows, for readers who cannot see it."""
    size: tuple[float, float] = SIZE
    """Inches, width and height."""
    keeps_size: bool = False
    """Whether the page shows it at its own size, and scrolls where a screen is narrower."""
    points: Sequence[Points] = ()
    """What the pointer shows; left out, the named lines and bars that `draw` has drawn."""


def compose(panels: Sequence[Panel], zoom: tuple[float, float] = (1.0, 1.0)) -> Figure:
    """The panels in rows, with one legend above them.

    Args:
        zoom: factors for width and height of the panels; their text keeps its size.
    """
    from matplotlib.figure import Figure

    width, height = (max(panel.size[axis] for panel in panels) * zoom[axis] for axis in (0, 1))
    columns = max(1, min(len(panels), int(PAGE_WIDTH * zoom[0] / width)))
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
    widths = [0.45 + 0.056 * len(text) for text in texts]  # inches
    all_fit = sum(widths) <= figure.get_figwidth()
    columns = len(texts) if all_fit else max(1, min(len(texts), int(figure.get_figwidth() / max(widths))))
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


def value_axis(ax: Axes, values: Iterable[float], log: bool | None = None) -> None:
    """Gives the y-axis plain numbers, and a logarithmic scale.

    Args:
        values: what the axis shows. None but positive ones have a logarithm.
        log: whether the scale is logarithmic; None: where the values spread far.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and (8 * min(finite) < max(finite) if log is None else log):
        ax.set_yscale("log")
        ratio = max(finite) / min(finite)
        subs = (1, 1.5, 2, 3, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 2000 else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def scale_axis(ax: Axes, name: str, values: Sequence[float], log: bool) -> None:
    """Gives the y-axis the scale on which a hyperparameter is learned: log v, and log(1 − v) for one such as momentum.

    Args:
        name: of the hyperparameter, without its group.
        log: whether it is learned on a logarithmic scale.
    """
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter

    if not log or name not in UNIT_INTERVAL:
        return value_axis(ax, values, log)
    finite = [value for value in values if value < 1]
    if not finite:
        return value_axis(ax, values)
    ax.set_yscale("function", functions=(lambda v: -np.log10(1 - np.minimum(v, 1 - 1e-15)), lambda u: 1 - 10.0**-u))
    room = (1 - min(finite)) * 1.15, (1 - max(finite)) / 1.15
    bottom, top = 1 - room[0], 1 - room[1]
    ticks = [tick for tick in UNIT_TICKS if bottom <= tick <= top]
    if len(ticks) > 1:
        ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.set_ylim(bottom, top)
    return None


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
