"""Inner optimizers as users would write them: good ones, and ones that break the protocol in one way each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fds_dist.common.flat import FlatLayout
from fds_dist.tangents.optimizers import PerWeight, same_for_all

H = Mapping[str, Tensor]


class Velocity(NamedTuple):
    velocity: Tensor


class HeavyBall:
    """SGD with momentum as a user would write it."""

    defaults: ClassVar[dict[str, Any]] = {"lr": 0.1, "drag": 0.5}
    domains: ClassVar[dict[str, tuple[float, float]]] = {"drag": (0.0, 1.0)}

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def init(self, weights: Tensor) -> Any:
        return Velocity(torch.zeros_like(weights))

    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        velocity = per_weight(1 - h["drag"]) * state.velocity + self.sign * gradient
        return weights - per_weight(h["lr"]) * velocity, Velocity(velocity)


class Normalized(HeavyBall):
    """The gradient of each parameter is divided by its norm."""

    layout: FlatLayout | None = None

    def bind(self, layout: FlatLayout) -> Normalized:
        bound = Normalized(self.sign)
        bound.layout = layout
        return bound

    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        assert self.layout is not None
        parts = [
            (part / (1e-3 + part.square().sum()).sqrt()).flatten() for part in self.layout.views(gradient).values()
        ]
        return super().update(weights, state, torch.cat(parts), h, per_weight)


class Adagrad(HeavyBall):
    """With a root whose derivative at 0 is infinite."""

    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        total = state.velocity + gradient**2
        return weights - per_weight(h["lr"]) * gradient / (total.sqrt() + 1e-8), Velocity(total)


class NoRate(HeavyBall):
    defaults: ClassVar[dict[str, Any]] = {"drag": 0.5}


class TextRate(HeavyBall):
    defaults: ClassVar[dict[str, Any]] = {"lr": "0.1", "drag": 0.5}


class NoUpdate:
    defaults: ClassVar[dict[str, Any]] = {"lr": 0.1}

    def init(self, weights: Tensor) -> Any:
        return ()


class Counts(HeavyBall):
    def init(self, weights: Tensor) -> Any:
        return {"velocity": torch.zeros_like(weights), "steps": 0}


class WholeCounts(HeavyBall):
    def init(self, weights: Tensor) -> Any:
        return Velocity(torch.zeros((), dtype=torch.int64))


class Raises(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return weights - h["learning_rate"] * gradient, state


class OneResult(HeavyBall):
    def update(  # type: ignore[override]
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> Tensor:
        return weights - h["lr"] * gradient


class OtherState(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return super().update(weights, state, gradient, h, per_weight)[0], (state.velocity,) * 2


class InPlace(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        gradient.mul_(per_weight(h["lr"]))
        return weights - gradient, state


class Random(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return weights - per_weight(h["lr"]) * gradient + 1e-3 * torch.randn(len(weights)), state


class ReadsOut(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return weights - h["lr"].item() * gradient, state


class ByNumpy(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return super().update(weights, state, torch.from_numpy(gradient.numpy() ** 3), h, per_weight)


class Detaches(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return super().update(weights, state, gradient.detach(), h, per_weight)


class Coupled(HeavyBall):
    """Clips by the norm of the whole gradient."""

    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return super().update(weights, state, gradient / (1 + gradient.square().sum()), h, per_weight)


class Groupless(HeavyBall):
    def update(
        self, weights: Tensor, state: Any, gradient: Tensor, h: H, per_weight: PerWeight = same_for_all
    ) -> tuple[Tensor, Any]:
        return super().update(weights, state, gradient, h)
