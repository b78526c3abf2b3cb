"""Inner optimizers: pure `(init, update)` pairs whose hyperparameters are arguments.

An update is a function of tensors alone, so that `torch.func.jvp` of it is its tangent: no optimizer needs a
hand-derived rule (design of FDS, arXiv 2007.07869, equation 3, does it by hand for SGD with momentum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

PerWeight = Callable[[Tensor], Tensor]
"""Values [] (for all weights) or [G] (one per parameter group) → what broadcasts over the weights [D]."""


def same_for_all(value: Tensor) -> Tensor:
    """The `PerWeight` without parameter groups: values are 0-d, or [D] already."""
    return value


class InnerOptimizer(Protocol):
    """What the inner run needs of an optimizer; its state is a NamedTuple of tensors."""

    @property
    def name(self) -> str:
        """The name in the config."""
        ...

    @property
    def defaults(self) -> Mapping[str, float]:
        """The names of its hyperparameters with `torch.optim`'s default values."""
        ...

    @property
    def switches(self) -> Mapping[str, object]:
        """Its fixed settings, to be told with a schedule that was learned for it."""
        ...

    def init(self, weights: Tensor) -> Any:
        """The state before the first step; `weights` [D]."""
        ...

    def update(
        self,
        weights: Tensor,
        state: Any,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, Any]:
        """One step: new weights [D] and state from the gradient [D] and the hyperparameters' values `h`.

        A value is a 0-d tensor, or [G], one per parameter group, of which `per_weight` makes one per weight [D]. What
        hyperparameters alone go into is computed first, and cheaply, on these.
        """
        ...


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


INNER_OPTIMIZERS: dict[str, Callable[[bool], InnerOptimizer]] = {
    "sgd": lambda nesterov: SGD(nesterov=nesterov),
    "adam": lambda nesterov: Adam(),
    "adamw": lambda nesterov: Adam(decoupled=True),
}
"""By name in the config; each takes the switch `inner.nesterov`, which is for SGD alone."""
