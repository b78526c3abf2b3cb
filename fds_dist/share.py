"""The part of a batch that one process sees where batches are split over processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs [B, ...] and targets [B, ...]."""


@dataclass(frozen=True)
class Share:
    """The part of a batch that this process sees."""

    fraction: float = 1.0
    """Of the batch's samples."""
    total: Callable[[Tensor], Tensor] | None = None
    """Sum over all parts of the batch, differentiable twice: batch-norm then uses the statistics of the whole batch.
    None: those of this part."""


WHOLE = Share()
