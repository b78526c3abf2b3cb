"""Hessian-vector products for many tangents at one point of the inner run, by two independent exact methods.

Shapes: D = weights, P = hyperparameters inside the loss, C = tangents in one call.

At a point (w, θ, batch) with gradient g = ∇_w L, a tangent (dw, dθ) gives

    dg = H·dw + (∂²L/∂w∂θ)·dθ,    H = ∂²L/∂w².

`jvp`: forward over reverse, `vmap(jvp(grad))`: a chunk of tangents shares one primal pass. Memory grows with C.
`double_backward`: reverse over reverse: one primal pass for all tangents, then one backward pass per tangent. Since
second derivatives commute, dg = ∇_w(g·dw + ∇_θL·dθ).

Both compute the gradient by the same operations whatever tangents are asked for, so that it has the same bits on
every rank. Never `grad(jvp(loss))`: it is silently wrong for networks with batch-norm or layer-norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fds_dist.common.batch import Batch
from fds_dist.tangents.batch_norm import Statistics
from fds_dist.tangents.network import TrainingLoss, differentiate


class Point(Protocol):
    """The training loss at one point, ready for products."""

    def products(self, tangents: Tensor, theta_tangents: Tensor) -> Tensor:
        """dg [C, D] for `tangents` dw [C, D] and `theta_tangents` dθ [C, P]."""
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
    def statistics(self) -> Statistics:
        """What batch-norm saw, for `Network.update_statistics`."""
        ...


PointMaker = Callable[[TrainingLoss, Tensor, Tensor, Batch, int, bool], Point]
"""(loss, w [D], θ [P], batch, seed of the step's randomness, vectorize: whether to batch the tangents) → point."""


class JvpPoint:
    """Forward over reverse. With `vectorize` the tangents of a call are batched, else taken one at a time."""

    def __init__(
        self, loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch, seed: int, vectorize: bool
    ) -> None:
        inputs, targets = batch
        self._network, self._seed, self._vectorize = loss.network, seed, vectorize
        # Floating-point targets get an explicit zero tangent: PyTorch's implicit zeros defeat e.g. `mse_loss`.
        constants = (targets,) if targets.is_floating_point() else ()
        self._primals = (weights, theta, *constants)
        self._zeros = tuple(map(torch.zeros_like, constants))
        self._primal: tuple[Tensor, Tensor, Statistics] | None = None

        def loss_with_aux(w: Tensor, t: Tensor, *constants: Tensor) -> tuple[Tensor, tuple[Tensor, Statistics]]:
            value, statistics = loss(w, t, (inputs, constants[0] if constants else targets))
            return value, (value.detach(), statistics)

        self._gradient = grad(loss_with_aux, has_aux=True)

    def products(self, tangents: Tensor, theta_tangents: Tensor) -> Tensor:
        """See `Point`."""
        if self._vectorize:
            dims: Any = (None, 0, None)  # only products differ between tangents
            return self._keep(vmap(self._push, out_dims=dims, randomness="same")(tangents, theta_tangents))
        return torch.stack([self._keep(self._push(*pair)) for pair in zip(tangents, theta_tangents, strict=True)])

    def _push(self, tangent: Tensor, theta_tangent: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Statistics]]:
        self._network.seed(self._seed)  # every tangent sees the same dropout masks
        pushed: Any = jvp(self._gradient, self._primals, (tangent, theta_tangent, *self._zeros), has_aux=True)
        return pushed

    def _keep(self, pushed: tuple[Tensor, Tensor, tuple[Tensor, Statistics]]) -> Tensor:
        gradient, product, (loss, statistics) = pushed
        if self._primal is None:
            self._primal = gradient, loss, statistics
        return product

    def _primal_pass(self) -> tuple[Tensor, Tensor, Statistics]:
        # A rank without tangents pushes a zero one, so that its gradient comes from the same operations as elsewhere.
        if self._primal is None:
            weights, theta = self._primals[:2]
            self.products(torch.zeros_like(weights)[None], torch.zeros_like(theta)[None])
        assert self._primal is not None
        return self._primal

    @property
    def gradient(self) -> Tensor:
        """See `Point`."""
        return self._primal_pass()[0]

    @property
    def loss(self) -> Tensor:
        """See `Point`."""
        return self._primal_pass()[1]

    @property
    def statistics(self) -> Statistics:
        """See `Point`."""
        return self._primal_pass()[2]


class DoubleBackwardPoint:
    """Reverse over reverse; tangents are taken one at a time over one graph, `vectorize` changes nothing."""

    def __init__(
        self, loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch, seed: int, vectorize: bool
    ) -> None:
        self._inputs = (weights.detach().requires_grad_(), theta.detach().requires_grad_())
        loss.network.seed(seed)
        value, self.statistics = loss(*self._inputs, batch)
        # The graph is made even where no tangent will follow: some backward formulas differ in their last bits.
        self._gradients = differentiate(value, self._inputs, create_graph=True, materialize_grads=True)
        self.loss = value.detach()

    @property
    def gradient(self) -> Tensor:
        """See `Point`."""
        return self._gradients[0].detach()

    def products(self, tangents: Tensor, theta_tangents: Tensor) -> Tensor:
        """See `Point`."""
        return torch.stack([self._product(*pair) for pair in zip(tangents, theta_tangents, strict=True)])

    def _product(self, tangent: Tensor, theta_tangent: Tensor) -> Tensor:
        pairs = [
            (gradient, direction)
            for gradient, direction in zip(self._gradients, (tangent, theta_tangent), strict=True)
            if gradient.requires_grad
        ]
        if not pairs:  # the loss is linear in everything
            return torch.zeros_like(tangent)
        outputs, directions = zip(*pairs, strict=True)
        weights = self._inputs[0]
        (product,) = differentiate(outputs, weights, directions, retain_graph=True, materialize_grads=True)
        return product


METHODS: dict[str, PointMaker] = {"jvp": JvpPoint, "double_backward": DoubleBackwardPoint}
"""By name in the config, `tangents.method`."""
