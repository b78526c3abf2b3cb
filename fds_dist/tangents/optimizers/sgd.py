"""SGD with momentum, weight decay and, as a switch, Nesterov's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, same_for_all


class SGDState(NamedTuple):
    """State of the optimizer."""

    velocity: Tensor  # [D]


@dataclass(frozen=True)
class SGD(BuiltIn):
    """v ← μv + g + ξw, w ← w − αv; with `nesterov` w ← w − α(g + ξw + μv)."""

    nesterov: bool = False

    @property
    def name(self) -> str:
        """The name in the config."""
        return "sgd"

    def init(self, weights: Tensor) -> SGDState:
        """The state before the first step; `weights` [D]."""
        return SGDState(torch.zeros_like(weights))

    def update(
        self,
        weights: Tensor,
        state: SGDState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, SGDState]:
        """See `InnerOptimizer`."""
        lr, momentum, weight_decay = (per_weight(h[name]) for name in self.defaults)
        # addcmul rounds once where the processor can, as torch.optim's add(alpha=...) does: equal to the last bit.
        gradient = torch.addcmul(gradient, weight_decay, weights)
        velocity = momentum * state.velocity + gradient
        direction = torch.addcmul(gradient, momentum, velocity) if self.nesterov else velocity
        return torch.addcmul(weights, lr, direction, value=-1), SGDState(velocity)
