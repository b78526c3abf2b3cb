"""Lion (Chen et al., "Symbolic discovery of optimization algorithms", arXiv 2302.06675, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, same_for_all


class LionState(NamedTuple):
    """State of the optimizer."""

    first_moment: Tensor  # [D]


@dataclass(frozen=True)
class Lion(BuiltIn):
    """w ← w − lr·(sign(β₁m + (1 − β₁)g) + ξw), then m ← β₂m + (1 − β₂)g.

    The derivative of the sign is 0 wherever it has one, so tangents do not pass through it: what remains of them is by
    lr and weight_decay at their own steps, and the decay of the weights.
    """

    @property
    def name(self) -> str:
        """The name in the config."""
        return "lion"

    def init(self, weights: Tensor) -> LionState:
        """The state before the first step; `weights` [D]."""
        return LionState(torch.zeros_like(weights))

    def update(
        self,
        weights: Tensor,
        state: LionState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, LionState]:
        """See `InnerOptimizer`."""
        direction = torch.lerp(state.first_moment, gradient, per_weight(1 - h["beta1"])).sign()
        weights = weights * per_weight(1 - h["lr"] * h["weight_decay"])
        weights = torch.addcmul(weights, per_weight(h["lr"]), direction, value=-1)
        return weights, LionState(torch.lerp(state.first_moment, gradient, per_weight(1 - h["beta2"])))
