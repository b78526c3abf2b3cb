"""Adam and AdamW as pure updates, equal to `torch.optim.Adam` and `AdamW` step by step.

    m ← β₁m + (1−β₁)g,  s ← β₂s + (1−β₂)g²,  w ← w − α·(m/(1−β₁ᵗ)) / (√(s/(1−β₂ᵗ)) + ε)

with t counted from 1. Adam adds ξw to g first; AdamW multiplies w by (1 − αξ) first instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.inner.per_weight import PerWeight, same_for_all


class AdamState(NamedTuple):
    """State of the optimizer."""

    first_moment: Tensor  # [D]
    second_moment: Tensor  # [D]
    steps: Tensor  # [] steps taken so far, as a number of the weights' type


@dataclass(frozen=True)
class Adam:
    """Adam with coupled weight decay, or AdamW where the weight decay is `decoupled`."""

    decoupled: bool = False

    @property
    def name(self) -> str:
        """The name in the config."""
        return "adamw" if self.decoupled else "adam"

    @property
    def defaults(self) -> dict[str, float]:
        """The hyperparameters with `torch.optim`'s defaults."""
        weight_decay = 1e-2 if self.decoupled else 0.0
        return {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": weight_decay}

    @property
    def switches(self) -> dict[str, object]:
        """Its fixed settings: none."""
        return {}

    def init(self, weights: Tensor) -> AdamState:
        """The state before the first step; `weights` [D]."""
        return AdamState(torch.zeros_like(weights), torch.zeros_like(weights), weights.new_zeros(()))

    def update(
        self,
        weights: Tensor,
        state: AdamState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, AdamState]:
        """See `InnerOptimizer`."""
        steps = state.steps + 1
        if self.decoupled:
            weights = weights * per_weight(1 - h["lr"] * h["weight_decay"])
        else:
            gradient = torch.addcmul(gradient, per_weight(h["weight_decay"]), weights)
        first = torch.lerp(state.first_moment, gradient, per_weight(1 - h["beta1"]))
        second = torch.addcmul(
            per_weight(h["beta2"]) * state.second_moment, per_weight(1 - h["beta2"]) * gradient, gradient
        )
        scale = safe_sqrt(second) / per_weight((1 - h["beta2"] ** steps).sqrt()) + per_weight(h["eps"])
        step_size = per_weight(h["lr"] / (1 - h["beta1"] ** steps))
        return weights - step_size * first / scale, AdamState(first, second, steps)


def safe_sqrt(x: Tensor) -> Tensor:
    """√x with derivative 0 at x = 0, where the true one is infinite and would turn tangents into NaN.

    A second moment is zero only where every gradient so far was zero; its tangent 2·g·dg is zero there too.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
