"""Schedule-free SGD and AdamW (Defazio et al., 2024, arXiv 2405.15682), as in the package schedulefree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.protocol import BuiltIn, PerWeight, safe_sqrt, same_for_all


class ScheduleFreeState(NamedTuple):
    """State of the optimizer. What is [] is [D] where parameter groups have values of their own."""

    z: Tensor  # [D] the weights that take the steps
    second_moment: Tensor  # [D] if adaptive, else [], 0
    interpolation: Tensor  # [] β of the last step
    highest: Tensor  # [] learning rate so far
    total: Tensor  # [] Σ w over the steps so far
    steps: Tensor  # [] taken so far, as a number of the weights' type


@dataclass(frozen=True)
class ScheduleFree(BuiltIn):
    """z ← z − lr·d, x ← (1 − c)x + c·z, y ← (1 − β)z + βx, with c = w / Σw and w = tʳ·(highest lr so far)ᵖ.

    The direction is d = g + ξy, or if `adaptive` (AdamW) d = g / (√(s / (1 − β₂ᵗ)) + ε) + ξy, s ← β₂s + (1 − β₂)g².
    The network trains at y, where g is taken; the average x is what is judged. As in the package, y and z are kept and
    x follows from them by the β of the last step, so that a β which changes moves x by (β_before/β − 1)(x − z).

    At a tie of the learning rate and the highest one so far each gets half of the maximum's derivative, as in PyTorch:
    that is the central difference by either alone. While the learning rate is 0 nothing moves, and c is 0.
    """

    adaptive: bool = False
    r: float = 0.0
    weight_lr_power: float = 2.0
    """p."""
    grouped: bool = False
    """Whether parameter groups have values of their own."""
    ties: ClassVar[tuple[str, ...]] = ("lr",)
    """See `InnerOptimizer`."""

    @property
    def name(self) -> str:
        """The name in the config."""
        return "schedule_free_adamw" if self.adaptive else "schedule_free_sgd"

    def for_groups(self) -> ScheduleFree:
        """See `InnerOptimizer`."""
        return replace(self, grouped=True)

    def init(self, weights: Tensor) -> ScheduleFreeState:
        """The state before the first step; `weights` [D]."""
        zero = torch.zeros_like(weights) if self.grouped else weights.new_zeros(())
        second_moment = torch.zeros_like(weights) if self.adaptive else weights.new_zeros(())
        return ScheduleFreeState(weights, second_moment, zero + 1, zero, zero, weights.new_zeros(()))

    def update(
        self,
        weights: Tensor,
        state: ScheduleFreeState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, ScheduleFreeState]:
        """See `InnerOptimizer`; `weights` is y."""
        lr, beta = per_weight(h["lr"]), per_weight(h["beta1" if self.adaptive else "momentum"])
        steps, second_moment = state.steps + 1, state.second_moment
        if self.adaptive:
            share = per_weight(1 - h["beta2"])
            second_moment = torch.addcmul(per_weight(h["beta2"]) * second_moment, share * gradient, gradient)
            correction = per_weight((1 - h["beta2"] ** steps).sqrt())
            gradient = gradient / (safe_sqrt(second_moment) / correction + per_weight(h["eps"]))
        direction = torch.addcmul(gradient, per_weight(h["weight_decay"]), weights)
        highest = torch.maximum(state.highest, lr)
        weight = self._weight(highest, steps)
        total = state.total + weight
        c = torch.where(total > 0, weight / torch.where(total > 0, total, 1.0), 0.0)
        # y ← (1 − β)z + βx without x, as the package has it: equal to rounding, and a vector less.
        moved = torch.lerp(weights, state.z, c) + lr * (beta * (1 - c) - 1) * direction
        z = torch.addcmul(state.z, lr, direction, value=-1)
        interpolation = torch.zeros_like(state.interpolation) + beta
        return moved, ScheduleFreeState(z, second_moment, interpolation, highest, total, steps)

    def _weight(self, highest: Tensor, steps: Tensor) -> Tensor:
        """w. A power of 0 has no derivative where it is below 1."""
        power, positive = self.weight_lr_power, highest > 0
        weight = torch.where(positive, torch.where(positive, highest, 1.0) ** power, 0.0**power)
        return weight * steps**self.r if self.r else weight

    def judged(self, weights: Tensor, state: ScheduleFreeState) -> Tensor:
        """See `InnerOptimizer`: x [D], from y = (1 − β)z + βx."""
        return torch.lerp(weights, state.z, 1 - 1 / state.interpolation)
