"""Hessian-vector products by central differences of plain gradients: nothing but first derivatives is needed.

Shapes: D = weights, P = hyperparameters inside the loss, C = tangents in one call.

With g = ∇_w L and a tangent (dw, dθ, db) of weights, hyperparameters inside the loss and live buffers,

    dg ≈ (g(w + ε·dw, θ + ε·dθ, b + ε·db) − g(w − ε·dw, θ − ε·dθ, b − ε·db)) / 2ε,

and the same difference of what the buffers become gives db'. Both sides have the batch, the buffers and the random
numbers of the step, so that dropout has the same masks.

The difference errs by ε²·|g'''|/6, its numerator by the rounding η·|g| of a gradient. Both together are smallest at
an ε of η^⅓ times the length over which g changes (Dennis & Schnabel, Numerical Methods for Unconstrained
Optimization, 1983, section 5.6), which is taken for the size of w: see `longest_step`. The relative error then is of
the order η^⅔. Kinks of the network are held, since a difference across one is no derivative: see `kinks.py`.

No hyperparameter moves further than half of the way to a bound of it. Where that would leave a step much shorter, the
difference is one-sided, of the same order: dg ≈ ±(4·g(±ε) − 3·g(0) − g(±2ε)) / 2ε (Abramowitz & Stegun, Handbook of
Mathematical Functions, 1964, table 25.2).

Relative errors of hypergradients over 500 steps of SGD (K = 4, the largest of the four; batches of 16, on a CPU) to
exact products in the same dtype, and of exact products in float32 to those in float64:

    network                        float64   float32   exact float32
    MLP (tanh), 8×8 images         2e-11     3e-5      4e-7
    LSTM, 12 steps of 8            3e-11     2e-5      4e-7
    WRN-10-1, 8×8 images           2e-10     9e-5      1e-2
    ViT, 8×8 images                2e-10     4e-4      9e-6

The ViT has a tenth of the others' learning rate. At theirs its training is unstable (hypergradients of 1e12), and
amplifies every error: 2e-4 in float64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.flat import FlatLayout
from fds_dist.tangents.kinks import Kinks
from fds_dist.tangents.network import Buffers
from fds_dist.tangents.point import PlainPoint, PointInputs

SHARE = 0.3
"""Of η^⅓: gradients of networks change over somewhat less than the size of their weights. Chosen before the step was
taken parameter by parameter, and not fitted to that since."""

SMALLEST_SHARE = 0.1
"""Of the root mean square of all weights: the least that a parameter's counts as. A bias starts at zero."""

SMALLEST = 1e-3
"""The least that a weight counts as. Where all are zero there is no size to go by."""

LEAST_ROOM = 0.01
"""Of ε: with bounds closer than this on both sides, rounding would be a hundred times the error; they are crossed."""


class DifferencePoint(PlainPoint):
    """A plain step, and two further plain gradients per product, taken one at a time; `vectorize` changes nothing."""

    def __init__(self, inputs: PointInputs, share: float = SHARE) -> None:
        self._inputs, self._share, self._kinks = inputs, share, Kinks()
        with self._kinks.noted():
            super().__init__(inputs)

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """See `Point`."""
        rows = (tangents, theta_tangents, buffer_tangents)
        products = [self._product(*tree_map(lambda tensor, row=row: tensor[row], rows)) for row in range(len(tangents))]
        return tree_map(lambda *parts: torch.stack(parts), *products)

    def _product(self, dw: Tensor, dtheta: Tensor, db: Buffers) -> tuple[Tensor, Buffers]:
        loss, theta = self._inputs.loss, self._inputs.theta
        live = {name: self._inputs.buffers[name] for name in db}
        network, start, tangent = loss.network, (self._inputs.weights, theta, live), (dw, dtheta, db)
        precision = network.low or network.dtype
        step = self._share * longest_step(network.layout, start, tangent, precision)
        if step.device.type == "cpu" and not step:  # elsewhere to ask would be to wait for the device
            return tree_map(torch.zeros_like, (dw, db))
        first, second, one_sided = places(step, theta, dtheta, loss.bounds)
        ahead, other = self._moved(first, dw, dtheta, db), self._moved(second, dw, dtheta, db)
        share = torch.where(step > 0, 0.5 / first, 0.0)

        def slope(ahead: Tensor, other: Tensor, here: Tensor) -> Tensor:
            difference = ahead - other
            return (difference if one_sided is None else difference + one_sided * 3 * (ahead - here)) * share

        after = {name: slope(ahead.buffers[name], other.buffers[name], self.buffers[name]) for name in db}
        return slope(ahead.gradient, other.gradient, self.gradient), after

    def _moved(self, step: Tensor, dw: Tensor, dtheta: Tensor, db: Buffers) -> PlainPoint:
        start = self._inputs
        moved = {name: start.buffers[name] + step * tangent for name, tangent in db.items()}
        weights, theta = start.weights + step * dw, start.theta + step * dtheta
        with self._kinks.held():
            return PlainPoint(replace(start, weights=weights, theta=theta, buffers={**start.buffers, **moved}))


def places(
    step: Tensor, theta: Tensor, dtheta: Tensor, bounds: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where two gradients are taken: at ±ε, or both on one side, at ±ε and ±2ε, to keep θ [P] within its `bounds`.

    Returns:
        Both places [], and whether they are on one side: [], 1 or 0 (None: they never are).
    """
    if bounds is None:
        return step, -step, None
    low, high = bounds
    up, down = ((high - theta) / 2, (theta - low) / 2)
    still = torch.full_like(theta, torch.inf)

    def room(direction: Tensor) -> Tensor:
        return torch.where(direction == 0, still, torch.where(direction > 0, up, down) / direction.abs()).min()

    ahead, behind = room(dtheta), room(-dtheta)
    free = torch.maximum(ahead, behind) < LEAST_ROOM * step
    central = free | (torch.minimum(ahead, behind) >= step)
    sided = torch.minimum(step, torch.maximum(ahead, behind) / 2) * torch.where(ahead >= behind, 1.0, -1.0)
    first = torch.where(central, step, sided)
    return first, torch.where(central, -step, 2 * sided), 1.0 - central.to(step.dtype)


def longest_step(
    layout: FlatLayout,
    place: tuple[Tensor, Tensor, Buffers],
    tangent: tuple[Tensor, Tensor, Buffers],
    precision: torch.dtype,
) -> Tensor:
    """ε [] without `SHARE`, on the device, for the tangent (dw [D], dθ [P], db) at (w, θ, b); 0 for a tangent of zeros.

    Nothing moves further than η^⅓ of its size: each parameter's Euclidean norm, that of all live buffers, and
    each θ, where one below 1 counts as 1. Parameter by parameter, since a layer's relative change is what its output
    follows (Bernstein et al., 2020, arXiv 2002.03432), and the norm of all weights hides that of a small layer. η is
    that of `precision`, which the network computes in.
    """
    (weights, theta, buffers), (dw, dtheta, db) = place, tangent
    sizes, moves = (_root_mean_squares(layout, flat) for flat in (weights, dw))
    typical = (weights.norm() / len(weights) ** 0.5 * SMALLEST_SHARE).clamp_min(SMALLEST)
    ratios = [moves / sizes.maximum(typical)]
    if len(theta):
        ratios.append(dtheta.abs() / theta.abs().clamp_min(1.0))
    if db:
        size, move = (torch.stack([tensor.norm() for tensor in part.values()]).norm() for part in (buffers, db))
        ratios.append((move / torch.where(size > 0, size, 1.0))[None])
    ratio = torch.cat(ratios).max()
    return torch.where(ratio == 0, 0.0, torch.finfo(precision).eps ** (1 / 3) / ratio)


def _root_mean_squares(layout: FlatLayout, flat: Tensor) -> Tensor:
    """Of each parameter in the vector `flat` [D]."""
    return torch.stack([part.norm() * part.numel() ** -0.5 for part in layout.views(flat).values()])
