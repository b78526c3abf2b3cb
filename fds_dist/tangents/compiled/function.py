"""One inner step and the step of one chunk of tangents, as one function of tensors.

Along the `data` axis a rank's function is one of tensors and of what the other ranks send it on the way.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), H = numbers in use
at a step, P = those of them inside the loss, C = tangents in a chunk.

    g = ∇_w L(w, θ(h); b, batch),    dg = H·dw + (∂²L/∂w∂θ)·θ(dh),    (w', s') = U(w, s, g, h),
    (dw', ds') = JVP of U at (w, s, g, h) along (dw, ds, dg, dh).

Its pieces are those of the eager step (`point.py`, `step.py`), so that both compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from fds_dist.common.batch import Batch, micro_batches
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.tangents.network import Buffers, TrainingLoss
from fds_dist.tangents.parts import AccumulatedPoint, MicroBatch, SplitPoint, SummedPoint
from fds_dist.tangents.point import PointInputs, PointMaker
from fds_dist.tangents.products import JvpPoint
from fds_dist.tangents.step import Update, gradient_tangents, remembered, tangent_step

ALONE = DataAxis()


class ChunkTangents(NamedTuple):
    """Derivatives of the state along the C directions of a chunk."""

    weights: Tensor  # [C, S]
    optimizer: Any  # tensors [C, ...], one per tensor of the optimizer's state
    buffers: Buffers  # [C, ...] of each live buffer


class StepInputs(NamedTuple):
    """What one step is a function of: a pytree of tensors, apart from plain values in the batch."""

    weights: Tensor  # [D]
    optimizer: Any  # pytree of tensors [S] or []
    buffers: Buffers
    h: Tensor  # [H]
    batch: Batch
    tangents: ChunkTangents
    directions: Tensor  # dh [C, H]


class StepOutputs(NamedTuple):
    """The state and the tangents after the step, and the loss before it."""

    weights: Tensor  # [D]
    optimizer: Any
    buffers: Buffers
    loss: Tensor  # [] this rank's part
    tangents: ChunkTangents


@dataclass(frozen=True)
class StepFunction:
    """See the module. The random numbers of the forward pass are those of the network's generator as it stands."""

    loss: TrainingLoss
    update: Update
    theta: Callable[[Tensor], Tensor]
    """h [..., H] → the numbers inside the loss [..., P]."""
    clip_hvp: float | None = None
    """Elementwise bound on the products."""
    make_point: PointMaker = JvpPoint
    """The method of Hessian-vector products."""
    vectorize: bool = True
    """Whether the tangents are batched."""
    accumulate: int = 1
    """Micro-batches that the batch is cut into."""
    discount: float = 1.0
    """γ: the share of the tangents that a step begins with, below 1 for the estimator greedy."""
    axis: DataAxis = ALONE
    """The ranks that share out the batch and the state."""
    whole_inputs: bool = True
    """See `DataAxis.split`."""

    def __call__(self, inputs: StepInputs, seed: int = 0) -> StepOutputs:
        """One step from `inputs`; `seed` is that of the random numbers."""
        weights, optimizer, buffers, h, batch, tangents, directions = inputs
        width, dtheta = len(weights), self.theta(directions)
        point = self._point(weights, self.theta(h), buffers, batch, seed)
        dw, ds, db = remembered(tangents, self.discount)
        asked = gradient_tangents(point, [(dw, dtheta, db)], dtheta.shape[-1], self.discount, self.clip_hvp)
        ((products, live),) = ((sent.wait(), after) for sent, after in asked)
        primals = weights[self.axis.columns(width)], optimizer, point.gradient, h
        along = dw, ds, products, directions
        new_tangents = tangent_step(self.update, primals, along, self.vectorize)
        columns, new_optimizer = self.update(*primals)
        new_weights = self.axis.gather(columns, width)
        return StepOutputs(new_weights, new_optimizer, point.buffers, point.loss, ChunkTangents(*new_tangents, live))

    def _point(self, weights: Tensor, theta: Tensor, buffers: Buffers, batch: Batch, seed: int) -> SummedPoint:
        """The training loss of the batch, as the sum over its micro-batches."""
        axis = self.axis.in_order()

        def at(part: Batch, buffers: Buffers) -> SummedPoint:
            split = axis.split(part, self.whole_inputs)
            inputs = PointInputs(self.loss, weights, theta, buffers, split, self.vectorize, seed)
            return SplitPoint(partial(self.make_point, inputs), axis, len(weights))

        parts = [MicroBatch(partial(at, part), fraction) for part, fraction in micro_batches(batch, self.accumulate)]
        return parts[0].at(buffers) if len(parts) == 1 else AccumulatedPoint(parts, buffers, axis.ahead)
