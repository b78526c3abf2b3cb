"""The training loss of a batch in parts: of the ranks of the `data` axis, and of micro-batches.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), P = hyperparameters
inside the loss, C = tangents in one call, b_i = samples of micro-batch i, B = Σ b_i.

With the loss of each micro-batch the mean over its samples, L = Σ_i (b_i/B)·L_i is the mean over the batch, and
gradient and products are the same sums: g = Σ_i (b_i/B)·g_i and dg = Σ_i (b_i/B)·dg_i, with dg_i as in `products`.
Buffers go from one micro-batch to the next as they go from step to step, and the tangents of live buffers with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.in_flight import Sent, ahead, arrived
from fds_dist.tangents.network import Buffers
from fds_dist.tangents.point import Derivatives, Point

Chunk = tuple[Tensor, Tensor, Buffers]
"""Tangents whose products are computed at once: dw [C, S], dθ [C, P], and db of the live buffers, [C, ...] each."""

Asked = tuple[Sent[Tensor], Buffers]
"""Products of a chunk: dg [C, S], once they are there, and db' of the live buffers after the step."""


class SummedPoint(Derivatives, Protocol):
    """The training loss of a whole batch, of which this rank has a part."""

    def asked(self, chunks: Iterable[Chunk]) -> Iterator[Asked]:
        """Asks for the products of the chunks, one after the other."""
        ...


class SplitPoint:
    """The training loss at one point, its batch split over the `data` axis: this rank's columns of every vector.

    Args:
        make: gives this rank's part, when it is needed: tangents are on their way by then.
        width: D.
    """

    def __init__(self, make: Callable[[], Point], axis: DataAxis, width: int) -> None:
        self._make, self._axis, self._width = make, axis, width
        self._gradient: Sent[Tensor] | Tensor | None = None

    @cached_property
    def _point(self) -> Point:
        return self._make()

    def asked(self, chunks: Iterable[Chunk]) -> Iterator[Asked]:
        """See `SummedPoint`. The tangents of the next chunk are gathered while the products of one are computed."""
        return starmap(self._products, ahead(map(self._gathered, chunks), self._axis.ahead))

    def _gathered(self, chunk: Chunk) -> tuple[Sent[Tensor], Tensor, Buffers]:
        tangents, theta_tangents, buffer_tangents = chunk
        return self._axis.send_gather(tangents, self._width), theta_tangents, buffer_tangents

    def _products(self, whole: Sent[Tensor], theta_tangents: Tensor, buffer_tangents: Buffers) -> Asked:
        point = self._point  # made before the first tangents are awaited
        products, buffers = point.products(whole.wait(), theta_tangents, buffer_tangents)
        sent = self._axis.send_reduce(products)
        if self._gradient is None:  # after the first products, which give it along the way by some methods
            self._gradient = self._axis.send_reduce(point.gradient)
        return sent, buffers

    @property
    def gradient(self) -> Tensor:
        """g [S]."""
        if self._gradient is None:
            self._gradient = self._axis.send_reduce(self._point.gradient)
        if isinstance(self._gradient, Sent):
            self._gradient = self._gradient.wait()
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

    at: Callable[[Buffers], SummedPoint]
    """The micro-batch's own training loss, at the weights of the step and at these buffers."""
    fraction: float
    """Of the batch's samples: b_i/B."""


class _Sums(NamedTuple):
    gradient: Tensor  # [S]
    loss: Tensor  # []
    buffers: Buffers  # after the last micro-batch


class AccumulatedPoint:
    """See `SummedPoint`. The products of all chunks exist at once: their sums over the micro-batches.

    Args:
        ahead: see `DataAxis`.
    """

    def __init__(self, parts: Sequence[MicroBatch], buffers: Buffers, ahead: int) -> None:
        self._parts, self._start, self._ahead = parts, buffers, ahead
        self._sums: _Sums | None = None

    def asked(self, chunks: Iterable[Chunk]) -> Iterator[Asked]:
        """See `SummedPoint`; goes through all micro-batches once."""
        chunks = list(chunks)
        totals, live = [torch.zeros_like(dw) for dw, _, _ in chunks], [buffers for _, _, buffers in chunks]

        def add(number: int, fraction: float, products: Sent[Tensor], after: Buffers) -> None:
            totals[number].add_(products.wait(), alpha=fraction)
            live[number] = after

        def visit(point: SummedPoint, fraction: float) -> None:
            before = ((dw, dtheta, buffers) for (dw, dtheta, _), buffers in zip(chunks, live, strict=True))
            for number, asked in enumerate(ahead(point.asked(before), self._ahead)):
                add(number, fraction, *asked)

        self._sums = self._through_all(visit)
        yield from zip(map(arrived, totals), live, strict=True)

    def _through_all(self, visit: Callable[[SummedPoint, float], None] | None = None) -> _Sums:
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
