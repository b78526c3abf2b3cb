"""Figures of matplotlib, wherever they are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lay_out(figure: Figure) -> None:
    """Computes the layout once for all files; each of them would do so twice, and draw once more."""
    engine = figure.get_layout_engine()
    assert engine is not None, "the figure has none"
    engine.execute(figure)
    figure.set_layout_engine("none")
