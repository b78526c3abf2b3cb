"""Adagrad (Duchi, Hazan and Singer, 2011) as in `torch.optim`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, safe_sqrt, same_for_all


class AdagradState(NamedTuple):
    """State of the optimizer."""

    sum_of_squares: Tensor  # [D]
    steps: Tensor  # [] steps taken so far, as a number of the weights' type


@dataclass(frozen=True)
class Adagrad(BuiltIn):
    """s ← s + g², w ← w − lr / (1 + (t − 1)·lr_decay) · g / (√s + ε); s begins at `initial_accumulator_value`."""

    initial_accumulator_value: float = 0.0

    @property
    def name(self) -> str:
        """The name in the config."""
        return "adagrad"

    def init(self, weights: Tensor) -> AdagradState:
        """The state before the first step; `weights` [D]."""
        return AdagradState(torch.full_like(weights, self.initial_accumulator_value), weights.new_zeros(()))

    def update(
        self,
        weights: Tensor,
        state: AdagradState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, AdagradState]:
        """See `InnerOptimizer`."""
        gradient = torch.addcmul(gradient, per_weight(h["weight_decay"]), weights)
        squares = torch.addcmul(state.sum_of_squares, gradient, gradient)
        step_size = per_weight(h["lr"] / (1 + state.steps * h["lr_decay"]))
        scaled = gradient / (safe_sqrt(squares) + per_weight(h["eps"]))
        return torch.addcmul(weights, step_size, scaled, value=-1), AdagradState(squares, state.steps + 1)
