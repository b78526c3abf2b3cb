"""Hessian-vector products for many tangents at one point of the inner run, by two independent exact methods.

Shapes: D = weights, P = hyperparameters inside the loss, C = tangents in one call.

At a point (w, θ, batch) with gradient g = ∇_w L, a tangent (dw, dθ) gives

    dg = H·dw + (∂²L/∂w∂θ)·dθ,    H = ∂²L/∂w².

`jvp`: forward over reverse, `vmap(jvp(grad))`: a chunk of tangents shares one primal pass. Memory grows with C.
`double_backward`: reverse over reverse: one primal pass for all tangents, then one backward pass per tangent. Since
second derivatives commute, dg = ∇_w(g·dw + ∇_θL·dθ).
`difference`: no exact method; see `difference.py`.
`plain`: none, for training without tangents.

Live buffers b (those that depend on the weights and reach a loss) are a further argument of L, and what they become
is a further result: b' = B(w, b; batch). Their tangents db' need a derivative of the forward pass alone, which `jvp`
has on the way; `double_backward` does not carry them.

Both compute the gradient by the same operations whatever tangents are asked for, so that it has the same bits on
every rank. Never `grad(jvp(loss))`: it is silently wrong for networks with batch-norm or layer-norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_map

from fds_dist.common.batch import map_tensors, tensors_in
from fds_dist.tangents.difference import DifferencePoint
from fds_dist.tangents.network import Buffers
from fds_dist.tangents.point import PlainPoint, PointInputs, PointMaker


class JvpPoint:
    """Forward over reverse. With `vectorize` the tangents of a call are batched, else taken one at a time."""

    def __init__(self, inputs: PointInputs) -> None:
        loss, buffers, part = inputs.loss, inputs.buffers, inputs.part
        self._network, self._seed, self._vectorize = loss.network, inputs.seed, inputs.vectorize
        live = {name: buffers[name] for name in loss.network.live}
        # What the loss reads of the batch gets explicit zero tangents: PyTorch's implicit zeros defeat e.g. `mse_loss`.
        constants = [tensor for tensor in tensors_in(loss.reads(part.batch)) if tensor.is_floating_point()]
        places = [id(constant) for constant in constants]
        self._primals = (inputs.weights, inputs.theta, live, *constants)
        self._zeros = tuple(map(torch.zeros_like, constants))
        self._primal: tuple[Tensor, Tensor, Buffers] | None = None

        def loss_with_aux(
            w: Tensor, t: Tensor, b: Buffers, *constants: Tensor
        ) -> tuple[Tensor, tuple[Tensor, Buffers]]:
            pushed = dict(zip(places, constants, strict=True))
            batch = map_tensors(lambda tensor: pushed.get(id(tensor), tensor), part.batch) if pushed else None
            value, after = loss(w, t, {**buffers, **b}, part, batch)
            return value, (value.detach(), after)

        gradient_of = grad(loss_with_aux, has_aux=True)

        def step(*primals: Any) -> tuple[tuple[Tensor, Buffers], tuple[Tensor, Buffers]]:
            gradient, (value, after) = gradient_of(*primals)
            return (gradient, {name: after[name] for name in live}), (value, after)

        self._step = step

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """See `Point`."""
        rows = (tangents, theta_tangents, buffer_tangents)
        if self._vectorize:
            dims: Any = (None, 0, None)  # only products differ between tangents
            return self._keep(vmap(self._push, out_dims=dims, randomness="same")(*rows))
        products = [
            self._keep(self._push(*tree_map(lambda tensor, row=row: tensor[row], rows))) for row in range(len(tangents))
        ]
        return tree_map(lambda *parts: torch.stack(parts), *products)

    def _push(self, tangent: Tensor, theta_tangent: Tensor, buffer_tangent: Buffers) -> Any:
        self._network.seed(self._seed)  # every tangent sees the same dropout masks
        directions = (tangent, theta_tangent, buffer_tangent, *self._zeros)
        return jvp(self._step, self._primals, directions, has_aux=True)

    def _keep(self, pushed: Any) -> tuple[Tensor, Buffers]:
        (gradient, _), products, (loss, buffers) = pushed
        if self._primal is None:
            self._primal = gradient, loss, {name: buffer.detach() for name, buffer in buffers.items()}
        return products

    def _primal_pass(self) -> tuple[Tensor, Tensor, Buffers]:
        # A rank without tangents pushes a zero one, so that its gradient comes from the same operations as elsewhere.
        if self._primal is None:
            weights, theta, live = self._primals[:3]
            self.products(*tree_map(lambda tensor: torch.zeros_like(tensor)[None], (weights, theta, live)))
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
    def buffers(self) -> Buffers:
        """See `Point`."""
        return self._primal_pass()[2]


class DoubleBackwardPoint:
    """Reverse over reverse; tangents are taken one at a time over one graph, `vectorize` changes nothing."""

    def __init__(self, inputs: PointInputs) -> None:
        loss = inputs.loss
        self._network = loss.network
        self._inputs = (inputs.weights.detach().requires_grad_(), inputs.theta.detach().requires_grad_())
        loss.network.seed(inputs.seed)
        value, after = loss(*self._inputs, inputs.buffers, inputs.part)
        # The graph is made even where no tangent will follow: some backward formulas differ in their last bits.
        self._gradients = loss.network.differentiate(value, self._inputs, create_graph=True, materialize_grads=True)
        self.loss = value.detach()
        self.buffers: Buffers = {name: buffer.detach() for name, buffer in after.items()}

    @property
    def gradient(self) -> Tensor:
        """See `Point`."""
        return self._gradients[0].detach()

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """See `Point`."""
        if buffer_tangents:
            raise RuntimeError("double_backward does not carry the tangents of buffers")
        rows = [self._product(*pair) for pair in zip(tangents, theta_tangents, strict=True)]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows), {}  # one is the rule, and needs no copy

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
        (product,) = self._network.differentiate(
            outputs, weights, directions, retain_graph=True, materialize_grads=True
        )
        return product


EXACT_METHODS: dict[str, PointMaker] = {"jvp": JvpPoint, "double_backward": DoubleBackwardPoint}
"""Exact methods of Hessian-vector products by name in the config, `tangents.method`."""

METHODS: dict[str, PointMaker] = {**EXACT_METHODS, "difference": DifferencePoint, "plain": PlainPoint}
"""All ways to take an inner step."""
