"""The training loss at one point of the inner run: its gradient, and products along tangents where a method gives them.

Shapes: D = weights, P = hyperparameters inside the loss, C = tangents in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fds_dist.common.batch import Part
from fds_dist.tangents.network import Buffers, TrainingLoss


@dataclass(frozen=True)
class PointInputs:
    """What the training loss is taken of, and how its products are computed."""

    loss: TrainingLoss
    weights: Tensor  # [D]
    theta: Tensor  # [P]
    buffers: Buffers
    part: Part
    """Of the batch."""
    vectorize: bool = False
    """Whether to batch the tangents."""
    seed: int = 0
    """Of the step's randomness."""


class Derivatives(Protocol):
    """What one pass through the network gives."""

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


class Point(Derivatives, Protocol):
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


PointMaker = Callable[[PointInputs], Point]
"""A method of Hessian-vector products."""


class PlainPoint:
    """A plain training step: no second graph, no products."""

    def __init__(self, inputs: PointInputs) -> None:
        loss, leaf = inputs.loss, inputs.weights.detach().requires_grad_()
        loss.network.seed(inputs.seed)
        value, after = loss(leaf, inputs.theta, inputs.buffers, inputs.part)
        self.gradient: Tensor = loss.network.differentiate(value, leaf)[0]
        self.loss: Tensor = value.detach()
        self.buffers: Buffers = {name: buffer.detach() for name, buffer in after.items()}

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """There are none."""
        raise RuntimeError("a plain step carries no tangents")
