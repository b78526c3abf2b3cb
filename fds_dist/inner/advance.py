"""One step of an inner run and of the tangents that this rank owns, chunk by chunk.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), R = tangents of
this rank, C = tangents in a chunk, H = numbers in use at a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.inner.compiled_training import CompiledTraining
from fds_dist.inner.rows import Rows, within
from fds_dist.inner.run import Tangents
from fds_dist.inner.training import Training
from fds_dist.tangents import (
    Point,
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
        advance_tangents(training, point, h, self._discount, tangents, directions, rows)
        training.step(point, h)
        return point.loss


def advance_tangents(
    training: Training,
    point: Point,
    h: Tensor,
    discount: float,
    tangents: Tangents,
    directions: Tensor,
    rows: Sequence[int],
) -> None:
    """One tangent step of `rows`, in place and chunk by chunk, so that only one chunk's temporaries exist at a time.

    Where micro-batches are summed, the products of all rows exist at once, and the updates follow chunk by chunk.
    """
    advance = _Advance(training, point, h, discount, tangents, directions)
    for group in training.row_groups(rows, training.problem.rows_at_once or max(1, len(rows))):
        advance.group(group)


class _Advance(NamedTuple):
    """One tangent step. What a method makes ends with it, before the next group or chunk begins."""

    training: Training
    point: Point
    h: Tensor  # [H]
    discount: float
    tangents: Tangents
    directions: Tensor  # [R, H]

    def group(self, group: Rows) -> None:
        """The rows whose products are asked for at once."""
        products, size = self.products(group), self.training.problem.chunk_size
        for first in range(0, len(products), size):
            part = slice(first, first + size)
            self.chunk(within(group, part), products[part])

    def products(self, group: Rows) -> Tensor:
        """dg [C, S] of a group; the tangents of its live buffers move on."""
        problem, tangents = self.training.problem, self.tangents
        before = {name: tensor[group] for name, tensor in tangents.buffers.items()}
        dw, db = remembered((tangents.weights[group], before), self.discount)
        along = dw, problem.theta(self.directions[group]), db
        products, after = gradient_tangents(self.point, along, self.discount, problem.tangents.clip_hvp)
        tree_map(lambda tensor, part: tensor.__setitem__(group, part), tangents.buffers, after)
        return products

    def chunk(self, chunk: Rows, products: Tensor) -> None:
        """The rows of `products` [C, S], whose updates are computed at once."""
        training, here = self.training, self.training.local_state
        old = self.tangents.weights, self.tangents.optimizer
        dw, ds = remembered(tree_map(lambda tensor: tensor[chunk], old), self.discount)
        primals = here.weights, here.optimizer, self.point.gradient, self.h
        along = dw, ds, products, self.directions[chunk]
        new = tangent_step(training.update, primals, along, training.problem.chunk_size > 1)
        tree_map(lambda tensor, rows: tensor.__setitem__(chunk, rows), old, new)
