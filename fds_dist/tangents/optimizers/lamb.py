"""LAMB (You et al., "Large batch optimization for deep learning", arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fds_dist.common.flat import FlatLayout
from fds_dist.tangents.optimizers.adam import AdamState
from fds_dist.tangents.optimizers.protocol import ByParameter, PerWeight, safe_sqrt, same_for_all


@dataclass(frozen=True)
class LAMB(ByParameter):
    """r = m̂ / (√ŝ + ε) + ξw, and for each parameter w ← w − lr·‖w‖/‖r‖·r.

    The trust ratio ‖w‖/‖r‖ is 1, a constant, where one of the norms is 0.
    """

    @property
    def name(self) -> str:
        """The name in the config."""
        return "lamb"

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
        state = state.after(gradient, h, per_weight)
        moment = state.first_moment / per_weight(1 - h["beta1"] ** state.steps)
        direction = torch.addcmul(moment / state.scale(h, per_weight), per_weight(h["weight_decay"]), weights)
        ratios = trust_ratios(norms(weights, self.known_layout), norms(direction, self.known_layout))
        step_size = per_weight(h["lr"]) * spread(ratios, self.known_layout)
        return torch.addcmul(weights, step_size, direction, value=-1), state


def norms(vector: Tensor, layout: FlatLayout) -> Tensor:
    """The Euclidean norm [P] of each of the P parameters in `vector` [D].

    Parameter by parameter: a scattered sum would add in another order at each call on a GPU.
    """
    return safe_sqrt(torch.stack([part.square().sum() for part in vector.split(layout.sizes)]))


def trust_ratios(of_weights: Tensor, of_direction: Tensor) -> Tensor:
    """‖w‖/‖r‖ [P], or 1 where one of them is 0."""
    both = (of_weights > 0) & (of_direction > 0)
    return torch.where(both, of_weights / torch.where(both, of_direction, 1.0), 1.0)


def spread(values: Tensor, layout: FlatLayout) -> Tensor:
    """`values` [P], one per parameter, as one per weight [D]."""
    return torch.cat([value.expand(size) for value, size in zip(values.unbind(), layout.sizes, strict=True)])
