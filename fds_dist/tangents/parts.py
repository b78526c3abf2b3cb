"""The training loss of a batch in parts: of the ranks of the `data` axis, and of micro-batches.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), P = hyperparameters
inside the loss, C = tangents in one call, b_i = samples of micro-batch i, B = Σ b_i.

With the loss of each micro-batch the mean over its samples, L = Σ_i (b_i/B)·L_i is the mean over the batch, and
gradient and products are the same sums: g = Σ_i (b_i/B)·g_i and dg = Σ_i (b_i/B)·dg_i, with dg_i as in `products`.
Buffers go from one micro-batch to the next as they go from step to step, and the tangents of live buffers with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.tangents.network import Buffers
from fds_dist.tangents.point import Point


class SplitPoint:
    """The training loss at one point, its batch split over the `data` axis: this rank's columns of every vector."""

    def __init__(self, point: Point, axis: DataAxis, width: int) -> None:
        self._point, self._axis, self._width = point, axis, width
        self._gradient: Tensor | None = None

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """dg [C, S] and db' for dw [C, S], dθ [C, P] and db of the live buffers."""
        whole = self._axis.gather(tangents, self._width)
        products, buffers = self._point.products(whole, theta_tangents, buffer_tangents)
        return self._axis.reduce(products), buffers

    @property
    def gradient(self) -> Tensor:
        """g [S]; asked for after the first products, which give it along the way by some methods."""
        if self._gradient is None:
            self._gradient = self._axis.reduce(self._point.gradient)
        return self._gradient

    @property
    def loss(self) -> Tensor:
        """This rank's part of L; the parts of the `data` axis add up to it."""
        return self._point.loss if self._axis.size == 1 else self._point.loss / self._axis.size

    @property
    def buffers(self) -> Buffers:
        """See `Point`."""
        return self._point.buffers


@dataclass(frozen=True)
class MicroBatch:
    """One term of the sum."""

    at: Callable[[Buffers], Point]
    """The micro-batch's own training loss, at the weights of the step and at these buffers."""
    fraction: float
    """Of the batch's samples: b_i/B."""


class _Sums(NamedTuple):
    gradient: Tensor  # [S]
    loss: Tensor  # []
    buffers: Buffers  # after the last micro-batch


class AccumulatedPoint:
    """See `Point`. `products` goes through all micro-batches once a call, so a call should have all tangents.

    Args:
        chunk_size: tangents per product, as without micro-batches.
    """

    def __init__(self, parts: Sequence[MicroBatch], buffers: Buffers, chunk_size: int) -> None:
        self._parts, self._start, self._chunk_size = parts, buffers, chunk_size
        self._sums: _Sums | None = None

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Buffers) -> tuple[Tensor, Buffers]:
        """See `Point`."""
        total = torch.zeros_like(tangents)
        live = {name: rows.clone() for name, rows in buffer_tangents.items()}

        def add(point: Point, fraction: float) -> None:
            for first in range(0, len(tangents), self._chunk_size):
                chunk = slice(first, first + self._chunk_size)
                before = {name: rows[chunk] for name, rows in live.items()}
                products, after = point.products(tangents[chunk], theta_tangents[chunk], before)
                total[chunk].add_(products, alpha=fraction)
                for name, rows in after.items():
                    live[name][chunk] = rows
                del products, after  # or they would be there beside the next ones

        self._sums = self._through_all(add)
        return total, live

    def _through_all(self, visit: Callable[[Point, float], None] | None = None) -> _Sums:
        buffers, sums = self._start, None
        for part in self._parts:
            point = part.at(buffers)
            if visit is not None:
                visit(point, part.fraction)
            terms = point.gradient * part.fraction, point.loss * part.fraction  # new tensors
            sums = terms if sums is None else (sums[0].add_(terms[0]), sums[1].add_(terms[1]))
            buffers = point.buffers
            del point  # and its graph, before the next one is made
        assert sums is not None
        return _Sums(*sums, buffers)

    def _summed(self) -> _Sums:
        if self._sums is None:
            self._sums = self._through_all()
        return self._sums

    @property
    def gradient(self) -> Tensor:
        """See `Point`."""
        return self._summed().gradient

    @property
    def loss(self) -> Tensor:
        """See `Point`."""
        return self._summed().loss

    @property
    def buffers(self) -> Buffers:
        """See `Point`."""
        return self._summed().buffers
