"""NAdam (Dozat, 2016) as in `torch.optim`, with its schedule of the momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.adam import AdamState
from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, safe_sqrt, same_for_all


class NAdamState(NamedTuple):
    """State of the optimizer."""

    moments: AdamState
    product: Tensor  # [] or [D]: Π μ over the steps so far


@dataclass(frozen=True)
class NAdam(BuiltIn):
    """Adam with Nesterov's step: w ← w − lr·((1 − μₜ)/(1 − Πμ)·g + μₜ₊₁/(1 − μₜ₊₁Πμ)·m) / (√ŝ + ε).

    μₜ = β₁(1 − ½·0.96^(t·momentum_decay)).
    """

    decoupled_weight_decay: bool = False

    @property
    def name(self) -> str:
        """The name in the config."""
        return "nadam"

    def init(self, weights: Tensor) -> NAdamState:
        """The state before the first step; `weights` [D]."""
        # One product per weight: parameter groups may have momenta of their own.
        return NAdamState(AdamState.zero(weights), torch.ones_like(weights))

    def update(
        self,
        weights: Tensor,
        state: NAdamState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, NAdamState]:
        """See `InnerOptimizer`."""
        if self.decoupled_weight_decay:
            weights = weights * per_weight(1 - h["lr"] * h["weight_decay"])
        else:
            gradient = torch.addcmul(gradient, per_weight(h["weight_decay"]), weights)
        moments = state.moments.after(gradient, h, per_weight)
        momentum, following = (
            h["beta1"] * (1 - 0.5 * 0.96 ** ((moments.steps + ahead) * h["momentum_decay"])) for ahead in (0, 1)
        )
        product = state.product * per_weight(momentum)
        correction = per_weight(1 - h["beta2"] ** moments.steps)
        scale = safe_sqrt(moments.second_moment / correction) + per_weight(h["eps"])
        by_gradient = per_weight(h["lr"] * (1 - momentum)) / (1 - product)
        by_moment = per_weight(h["lr"] * following) / (1 - product * per_weight(following))
        weights = weights - by_gradient * gradient / scale - by_moment * moments.first_moment / scale
        return weights, NAdamState(moments, product)
