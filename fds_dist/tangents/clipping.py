"""Gradient clipping as a pure function of the gradient, whose JVP is its exact derivative.

Shapes: D = weights, S = those in the columns at hand (all D, unless they are sharded).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import safe_sqrt

EPSILON = 1e-6
"""Is added to the norm, as `torch.nn.utils.clip_grad_norm_` does."""

Clipping = Callable[[Tensor], Tensor]
"""The gradient [S] → the gradient that the optimizer gets [S]."""


def unchanged(tensor: Tensor) -> Tensor:
    """The tensor itself: the sum over one rank, and clipping without bounds."""
    return tensor


def clipping(
    value: float | None = None, norm: float | None = None, total: Callable[[Tensor], Tensor] = unchanged
) -> Clipping:
    """Clips each element to ±`value`, then the Euclidean norm ‖g‖ of the whole gradient to `norm`; None: no bound.

    The norm is that of `torch.nn.utils.clip_grad_norm_`: g ← g·min(1, norm / (‖g‖ + 1e-6)). Its derivative along dg is
    c·dg + dc·g with c the factor and dc = −c·(g·dg) / (‖g‖·(‖g‖ + 1e-6)), or dg where ‖g‖ is below the bound.

    Args:
        total: a differentiable sum over the ranks that hold the other columns of the gradient.
    """

    def clip(gradient: Tensor) -> Tensor:
        if value is not None:
            gradient = gradient.clamp(-value, value)  # its JVP is mask ∘ dg, as it should be
        if norm is not None:
            length = safe_sqrt(total(gradient.square().sum()))
            gradient = gradient * torch.clamp(norm / (length + EPSILON), max=1.0)
        return gradient

    return clip
