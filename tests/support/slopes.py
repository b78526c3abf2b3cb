"""Gradients of a small function that is not quadratic, another one at each step, to try optimizers on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[Tensor, int], Tensor]
"""(weights [D], step) → gradient [D] on that step's batch."""


def non_quadratic_problem(dtype: torch.dtype, size: int, steps: int) -> tuple[Tensor, Gradient]:
    """Initial weights [D] and the gradient of Σ log cosh(wᵢ + wᵢ₋₁ + cᵢ) + ½·0.1·wᵢ², with another c at each step."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(size, generator=generator, dtype=dtype)
    batches = torch.randn(steps, size, generator=generator, dtype=dtype)

    def gradient(weights: Tensor, step: int) -> Tensor:
        slope = torch.tanh(weights + weights.roll(1) + batches[step])
        return slope + slope.roll(-1) + 0.1 * weights

    return weights, gradient
