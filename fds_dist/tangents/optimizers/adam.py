"""Adam (arXiv 1412.6980) and AdamW (arXiv 1711.05101), as in `torch.optim`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, safe_sqrt, same_for_all


class AdamState(NamedTuple):
    """State of the optimizer."""

    first_moment: Tensor  # [D]
    second_moment: Tensor  # [D]
    steps: Tensor  # [] steps taken so far, as a number of the weights' type

    @classmethod
    def zero(cls, weights: Tensor) -> AdamState:
        """The state before the first step; `weights` [D]."""
        return cls(torch.zeros_like(weights), torch.zeros_like(weights), weights.new_zeros(()))

    def after(self, gradient: Tensor, h: Mapping[str, Tensor], per_weight: PerWeight) -> AdamState:
        """m ← β₁m + (1 − β₁)g and s ← β₂s + (1 − β₂)g²."""
        first = torch.lerp(self.first_moment, gradient, per_weight(1 - h["beta1"]))
        second = torch.addcmul(
            per_weight(h["beta2"]) * self.second_moment, per_weight(1 - h["beta2"]) * gradient, gradient
        )
        return AdamState(first, second, self.steps + 1)

    def scale(self, h: Mapping[str, Tensor], per_weight: PerWeight) -> Tensor:
        """√(s / (1 − β₂ᵗ)) + ε [D], by which the first moment is divided."""
        correction = (1 - h["beta2"] ** self.steps).sqrt()
        return safe_sqrt(self.second_moment) / per_weight(correction) + per_weight(h["eps"])


@dataclass(frozen=True)
class Adam(BuiltIn):
    """w ← w − α·m̂ / (√ŝ + ε), the weight decay part of the gradient, or `decoupled` from it (AdamW)."""

    decoupled: bool = False

    @property
    def name(self) -> str:
        """The name in the config."""
        return "adamw" if self.decoupled else "adam"

    def init(self, weights: Tensor) -> AdamState:
        """The state before the first step; `weights` [D]."""
        return AdamState.zero(weights)

    def update(
        self,
        weights: Tensor,
        state: AdamState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, AdamState]:
        """See `InnerOptimizer`."""
        if self.decoupled:
            weights = weights * per_weight(1 - h["lr"] * h["weight_decay"])
        else:
            gradient = torch.addcmul(gradient, per_weight(h["weight_decay"]), weights)
        state = state.after(gradient, h, per_weight)
        step_size = per_weight(h["lr"] / (1 - h["beta1"] ** state.steps))
        return weights - step_size * state.first_moment / state.scale(h, per_weight), state
