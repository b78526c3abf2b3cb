"""Theorem 4.1 of FDS (arXiv 2007.07869): the error of hypergradients averaged over windows of W steps.

Per-step hypergradients g_t [T] have means μ_t, which drift by at most ε per step, a mean variance MSE_1, and pairwise
correlation of at most c ≥ 0. The average over the window of t estimates μ_t with a mean squared error of

    MSE_W ≤ (1 + c(W − 1))/W · MSE_1 + ε²(W² − 1)/12 = (c + (1 − c)/W) · MSE_1 + ε²(W² − 1)/12

The first term is the variance of the average; the second is the squared bias of a ramp, on which every step drifts by
ε in the same direction. For c < 0 this is not a bound.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Window = TypeVar("Window", float, Floats)


def mse_bound(window: Window, variance: float, drift: float = 0.0, correlation: float = 0.0) -> Window:
    """The theorem's bound of MSE_W.

    Args:
        window: W in steps, a number or an array.
        variance: MSE_1, of one hyperparameter's per-step hypergradients.
        drift: ε, in units of the hypergradient per step.
        correlation: c, at least 0.
    """
    return (1 + correlation * (window - 1)) / window * variance + drift**2 * (window**2 - 1) / 12


def best_window(variance: float, drift: float, correlation: float = 0.0) -> float:
    """W* = (6(1 − c)·MSE_1/ε²)^(1/3), the window of the least bound: at least 1, and infinite without drift.

    For c = 0 this is the paper's (6σ²/ε²)^(1/3). Averaging reduces only the part of the variance that steps do not
    share, hence the factor 1 − c.
    """
    independent = 6 * (1 - correlation) * variance
    return max(1.0, (independent / drift**2) ** (1 / 3)) if drift**2 > 0 else math.inf
