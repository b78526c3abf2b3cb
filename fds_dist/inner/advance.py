"""One step of an inner run and of the tangents that this rank owns, chunk by chunk.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), R = tangents of
this rank, C = tangents in a chunk, H = numbers in use at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.distributed.in_flight import ahead
from fds_dist.inner.compiled_training import CompiledTraining
from fds_dist.inner.rows import Rows
from fds_dist.inner.run import Tangents
from fds_dist.inner.training import Training
from fds_dist.tangents import (
    Asked,
    Chunk,
    SummedPoint,
    gradient_tangents,
    remembered,
    tangent_step,
)


class Steps:
    """Takes the steps of one inner run: compiled where they can be (see `CompiledTraining`), else eagerly.

    Args:
        discount: γ, the share of the tangents that a step begins with: below 1 for the estimator greedy.
    """

    def __init__(self, training: Training, discount: float = 1.0) -> None:
        self._training, self._discount = training, discount
        compiles = training.problem.tangents.compile != "off"
        self._compiled = CompiledTraining(training, discount) if compiles else None

    def take(self, h: Tensor, tangents: Tangents, directions: Tensor, rows: Sequence[int]) -> Tensor:
        """The next step of the run with h [H], and of the tangents' `rows` along `directions` [R, H], in place.

        Returns:
            This rank's part of the training loss [].
        """
        training = self._training
        batch = training.next_batch()
        if self._compiled is not None:
            loss = self._compiled.take(batch, h, tangents, directions, rows)
            if loss is not None:
                return loss
        point = training.point(training.problem.theta(h), batch)
        advance(training, point, h, self._discount, tangents, directions, rows)
        return point.loss


def advance(
    training: Training,
    point: SummedPoint,
    h: Tensor,
    discount: float,
    tangents: Tangents,
    directions: Tensor,
    rows: Sequence[int],
) -> None:
    """One step of the run, and of the tangents' `rows` in place, chunk by chunk.

    Only one chunk's temporaries exist at a time. Where micro-batches are summed, the products of all rows exist at
    once, and the updates follow chunk by chunk. Along the `data` axis a chunk's update follows the next chunk's
    products, and the last one's the update of the weights: so the ranks compute while their sums are under way.
    """
    chunks = list(training.row_groups(rows, repeat(training.problem.chunk_size)))
    step = _Advance(training, point, h, discount, tangents, directions)
    for end in ahead(step.begun(chunks), training.axis.ahead):
        end()


class _Advance(NamedTuple):
    """One step. What a method makes ends with it, before the next chunk begins."""

    training: Training
    point: SummedPoint
    h: Tensor  # [H]
    discount: float
    tangents: Tangents
    directions: Tensor  # [R, H]

    def begun(self, chunks: Sequence[Rows]) -> Iterator[Callable[[], None]]:
        """Begins with each chunk, and then with the weights; each time gives what ends it."""
        options, theta_size = self.training.problem.tangents, self.training.problem.theta_size
        along = map(self.along, chunks)
        yield from map(
            self.chunk, chunks, gradient_tangents(self.point, along, theta_size, self.discount, options.clip_hvp)
        )
        yield self.training.begin_step(self.point, self.h)

    def along(self, chunk: Rows) -> Chunk:
        """The tangents of some rows, as the step finds them."""
        before = {name: tensor[chunk] for name, tensor in self.tangents.buffers.items()}
        dw, db = remembered((self.tangents.weights[chunk], before), self.discount)
        return dw, self.training.problem.theta(self.directions[chunk]), db

    def chunk(self, chunk: Rows, asked: Asked) -> Callable[[], None]:
        """Moves the tangents of the live buffers on; the result moves those of weights and optimizer on."""
        products, buffers = asked
        tree_map(lambda tensor, part: tensor.__setitem__(chunk, part), self.tangents.buffers, buffers)
        return lambda: self.update(chunk, products.wait())

    def update(self, chunk: Rows, products: Tensor) -> None:
        """The tangents of some rows after the update, from dg [C, S], their `products`."""
        training, here = self.training, self.training.local_state
        old = self.tangents.weights, self.tangents.optimizer
        dw, ds = remembered(tree_map(lambda tensor: tensor[chunk], old), self.discount)
        primals = here.weights, here.optimizer, self.point.gradient, self.h
        along = dw, ds, products, self.directions[chunk]
        new = tangent_step(training.update, primals, along, training.problem.chunk_size > 1)
        tree_map(lambda tensor, rows: tensor.__setitem__(chunk, rows), old, new)
