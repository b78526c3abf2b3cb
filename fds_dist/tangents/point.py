"""The training loss at one point of the inner run: its gradient, and products along tangents where a method gives them.

Shapes: D = weights, P = hyperparameters inside the loss, C = tangents in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from fds_dist.common.batch import Part
from fds_dist.tangents.network import Buffers, TrainingLoss


class Point(Protocol):
    """The training loss at one point, ready for products."""

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """Products for one chunk of tangents.

        Args:
            tangents: dw [C, D].
            theta_tangents: dθ [C, P].
            buffer_tangents: db of the live buffers, [C, ...] each.

        Returns:
            dg [C, D], and db' of the live buffers after the step.
        """
        ...

    @property
    def gradient(self) -> Tensor:
        """g [D]."""
        ...

    @property
    def loss(self) -> Tensor:
        """L, a 0-d tensor."""
        ...

    @property
    def buffers(self) -> Buffers:
        """The buffers after the step, detached."""
        ...


PointMaker = Callable[[TrainingLoss, Tensor, Tensor, Buffers, Part, int, bool], Point]
"""(loss, w [D], θ [P], buffers, part of the batch, seed of the step's randomness, vectorize: whether to batch the
tangents) → point."""


class PlainPoint:
    """A plain training step: no second graph, no products."""

    def __init__(
        self,
        loss: TrainingLoss,
        weights: Tensor,
        theta: Tensor,
        buffers: Buffers,
        part: Part,
        seed: int,
        vectorize: bool,
    ) -> None:
        loss.network.seed(seed)
        leaf = weights.detach().requires_grad_()
        value, after = loss(leaf, theta, buffers, part)
        self.gradient: Tensor = loss.network.differentiate(value, leaf)[0]
        self.loss: Tensor = value.detach()
        self.buffers: Buffers = {name: buffer.detach() for name, buffer in after.items()}

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """There are none."""
        raise RuntimeError("a plain step carries no tangents")
