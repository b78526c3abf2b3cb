"""Draws panels: as SVG inside the page, in its own colors, and as files for papers."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from fds_dist.commands.figure_style import save_figure
from fds_dist.commands.report.panels import INK, RAMP, Panel, compose
from fds_dist.commands.report.pointer import readings
from fds_dist.common.figures import lay_out

ZOOM = (1.3, 1.02)
"""How much larger panels are on the page than in print: their letters then have the size of the page's text."""
POINTS_PER_INCH = 72
"""The unit of an SVG's view box."""


class Drawing(NamedTuple):
    """A panel on the page."""

    svg: str
    """Inline SVG without a script, everything that users wrote escaped."""
    readings: dict[str, Any] | None
    """See `pointer.readings`."""


def drawing(panel: Panel, key: str) -> Drawing:
    """The panel as inline SVG in the colors of the page's text; its ids begin with `key`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    wide = panel.keeps_size
    figure = compose([panel], (1.0, 1.0) if wide else ZOOM)
    figure.set_dpi(POINTS_PER_INCH)
    FigureCanvasSVG(figure)  # measures the text as it will be drawn
    lay_out(figure)
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, dpi=POINTS_PER_INCH, metadata={"Date": None, "Creator": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for index, color in enumerate(RAMP):
        text = text.replace(color, f"var(--ramp{index})")
    text = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{key}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Paths are precise enough to a hundredth of a point.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    width, height = (inches * POINTS_PER_INCH for inches in figure.get_size_inches())
    shown = readings(figure.axes[0], panel.points, height)
    size = f"width:{1.45 * width:.0f}px;min-width:{1.25 * width:.0f}px" if wide else f"max-width:{1.7 * width:.0f}px"
    pointed = f' tabindex="0" data-readings="{key}"' if shown else ""
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda tag: f'<svg role="img" aria-label="{escape(panel.alt)}" {tag[1]} style="{size}"{pointed}>',
        text,
        count=1,
    )
    return Drawing(svg, shown)


def write_files(panels: Sequence[Panel], folder: Path, name: str, endings: Sequence[str]) -> None:
    """Writes the panels of a figure side by side into a file of each ending."""
    if not endings:
        return
    figure = compose(panels)
    lay_out(figure)
    for ending in endings:
        save_figure(figure, folder / f"{name}.{ending}", dpi=300, facecolor="white")
