"""Exponential moving average of the weights: an inner optimizer around another one, whose state holds the average.

The average is what is validated. As part of the state it has tangents, by the JVP of the update like all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import Around, PerWeight, same_for_all


class AveragedState(NamedTuple):
    """State of the optimizer."""

    average: Tensor  # [D] of the weights
    updates: Tensor  # [] taken so far, as a number of the weights' type
    optimizer: Any  # the state of the optimizer inside


@dataclass(frozen=True)
class Averaged(Around):
    """`optimizer`, with the average ā_t = decay·ā_{t−1} + (1 − decay)·w_t of the weights after each step.

    The first step sets ā_1 = w_1. This is `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`.
    Buffers are not averaged, as by its default `use_buffers=False`: running statistics are moving averages already.
    """

    decay: float

    def init(self, weights: Tensor) -> AveragedState:
        """The state before the first step; `weights` [D]."""
        return AveragedState(weights, weights.new_zeros(()), self.optimizer.init(weights))

    def update(
        self,
        weights: Tensor,
        state: AveragedState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, AveragedState]:
        """See `InnerOptimizer`."""
        weights, inside = self.optimizer.update(weights, state.optimizer, gradient, h, per_weight)
        share = torch.where(state.updates > 0, weights.new_full((), 1 - self.decay), 1.0)
        average = torch.lerp(state.average, weights, share)  # torch's own arithmetic
        return weights, AveragedState(average, state.updates + 1, inside)

    def judged(self, weights: Tensor, state: AveragedState) -> Tensor:
        """See `InnerOptimizer`."""
        return state.average
