"""Pruning: skip the tangent update on a fraction of steps, on which tangents stay as they are (FDS, section 5).

Steps are counted within the window of the hyperparameter's own bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil


@dataclass(frozen=True)
class Pruning:
    """Skips the fraction `ratio` of each window's steps; ratio 0 skips none."""

    mode: str = "alternate"
    """`alternate` keeps the first step of each period; `truncate` skips the first part of each window."""
    ratio: float = 0.0

    def keeps(self, offset: int, window: int) -> bool:
        """Whether tangents are updated on step `offset` (from 0) of a window of `window` steps."""
        kept_share = 1 - Fraction(str(self.ratio))  # exact: 0.6 skips 3 of 5, not 3 ± rounding
        if self.mode == "truncate":
            return offset >= window - ceil(window * kept_share)
        return ceil((offset + 1) * kept_share) > ceil(offset * kept_share)
