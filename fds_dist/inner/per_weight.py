"""How hyperparameters reach the weights: one value for all, or one per parameter group."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

PerWeight = Callable[[Tensor], Tensor]
"""Values [] (for all weights) or [G] (one per parameter group) → what broadcasts over the weights [D]."""


def same_for_all(value: Tensor) -> Tensor:
    """The `PerWeight` without parameter groups: values are 0-d, or [D] already."""
    return value
