"""Stochastic gradient descent as a pure update, equal to `torch.optim.SGD` step by step.

    g ← g + ξw,  v ← μv + g,  w ← w − α·(g + μv if nesterov else v)

with learning rate α (`lr`), momentum μ (`momentum`) and coupled weight decay ξ (`weight_decay`). Dampening is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.inner.per_weight import PerWeight, same_for_all


class SGDState(NamedTuple):
    """State of the optimizer."""

    velocity: Tensor  # [D]


@dataclass(frozen=True)
class SGD:
    """SGD with momentum; `nesterov` is a fixed switch."""

    nesterov: bool = False

    @property
    def name(self) -> str:
        """The name in the config."""
        return "sgd"

    @property
    def defaults(self) -> dict[str, float]:
        """The hyperparameters with `torch.optim`'s defaults."""
        return {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0}

    @property
    def switches(self) -> dict[str, object]:
        """Its fixed settings."""
        return {"nesterov": self.nesterov}

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
