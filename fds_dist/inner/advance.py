"""One step of an inner run and of the tangents that this rank owns, chunk by chunk.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), R = tangents of
this rank, H = numbers in use at a step.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.inner.compiled_training import CompiledTraining
from fds_dist.inner.rows import within
from fds_dist.inner.run import Tangents
from fds_dist.inner.training import Training
from fds_dist.tangents import (
    Point,
    tangent_step,
)


class Steps:
    """Takes the steps of one inner run: compiled where they can be (see `CompiledTraining`), else eagerly."""

    def __init__(self, training: Training) -> None:
        self._training = training
        problem = training.problem
        self._compiled = (
            CompiledTraining(training) if training.axis.size == 1 and problem.tangents.compile != "off" else None
        )

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
        advance_tangents(training, point, h, tangents, directions, rows)
        training.step(point, h)
        return point.loss


def advance_tangents(
    training: Training, point: Point, h: Tensor, tangents: Tangents, directions: Tensor, rows: Sequence[int]
) -> None:
    """One tangent step of `rows`, in place and chunk by chunk, so that only one chunk's temporaries exist at a time.

    Where micro-batches are summed, the products of all rows exist at once, and the updates follow chunk by chunk.
    """
    problem, here = training.problem, training.local_state
    clip = problem.tangents.clip_hvp
    vectorize = problem.chunk_size > 1
    for group in training.row_groups(rows, problem.rows_at_once or max(1, len(rows))):
        before = {name: tensor[group] for name, tensor in tangents.buffers.items()}
        products, after = point.products(tangents.weights[group], problem.theta(directions[group]), before)
        if clip is not None:
            products = products.clamp(-clip, clip)
        tree_map(lambda tensor, part, group=group: tensor.__setitem__(group, part), tangents.buffers, after)
        primals = (here.weights, here.optimizer, point.gradient, h)
        for first in range(0, len(products), problem.chunk_size):
            part = slice(first, first + problem.chunk_size)
            dg, chunk = products[part], within(group, part)
            dw, ds = tree_map(lambda tensor, chunk=chunk: tensor[chunk], (tangents.weights, tangents.optimizer))
            new = tangent_step(training.update, primals, (dw, ds, dg, directions[chunk]), vectorize)
            old = (tangents.weights, tangents.optimizer)
            tree_map(lambda tensor, rows, chunk=chunk: tensor.__setitem__(chunk, rows), old, new)
