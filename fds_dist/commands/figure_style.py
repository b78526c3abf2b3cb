"""The look that all figures share: colors that the color-blind tell apart, and what papers ask for.

Everything must be told apart without color too: by dashes, markers or hatches.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fds_dist.common.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A name in another script than the font's shows as boxes in a figure; the page's tables and files have it as it is.
warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
ORANGE = "#E69F00"
"""With black these are the colors of Okabe and Ito, without their yellow, which is too faint on white. Sky and orange
are for figures on white alone: their contrast with white is below 3 to 1."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "pdf.fonttype": 42,  # letters stay letters in a PDF
}
"""For `matplotlib.rc_context`; a figure may add to it."""


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Writes the figure in the format of the path's ending, whole or not at all; `options` are those of `savefig`.

    Raises:
        WriteFailed: the disk is full, for example.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], **options)
    write_atomic(path, drawn.getvalue())
