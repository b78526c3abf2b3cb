"""RMSprop as in `torch.optim` (Tieleman and Hinton, 2012; centered: Graves, arXiv 1308.0850)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, safe_sqrt, same_for_all


class RMSpropState(NamedTuple):
    """State of the optimizer."""

    second_moment: Tensor  # [D]
    velocity: Tensor  # [D]
    first_moment: Tensor  # [D] if centered, else [], 0


@dataclass(frozen=True)
class RMSprop(BuiltIn):
    """s ← αs + (1 − α)g², v ← μv + g / (√s + ε), w ← w − lr·v; `centered`: √(s − m²) of the mean gradient m."""

    centered: bool = False

    @property
    def name(self) -> str:
        """The name in the config."""
        return "rmsprop"

    def init(self, weights: Tensor) -> RMSpropState:
        """The state before the first step; `weights` [D]."""
        zeros = torch.zeros_like(weights)
        return RMSpropState(zeros, zeros.clone(), zeros.clone() if self.centered else weights.new_zeros(()))

    def update(
        self,
        weights: Tensor,
        state: RMSpropState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, RMSpropState]:
        """See `InnerOptimizer`."""
        gradient = torch.addcmul(gradient, per_weight(h["weight_decay"]), weights)
        share = per_weight(1 - h["alpha"])
        second = torch.addcmul(per_weight(h["alpha"]) * state.second_moment, share * gradient, gradient)
        first, variance = state.first_moment, second
        if self.centered:
            first = torch.lerp(first, gradient, share)
            variance = torch.addcmul(second, first, first, value=-1)
        velocity = torch.addcdiv(
            per_weight(h["momentum"]) * state.velocity, gradient, safe_sqrt(variance) + per_weight(h["eps"])
        )
        weights = torch.addcmul(weights, per_weight(h["lr"]), velocity, value=-1)
        return weights, RMSpropState(second, velocity, first)
