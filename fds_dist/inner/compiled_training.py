"""The steps of an inner run as one compiled call per chunk of tangents, where that can be and is right.

Tangents come in chunks of as many as fit into memory, or of fewer where that is faster. The last one has as many as
are left where that gives the same bits, and is else filled up with zeros. So nothing is compiled anew because a bucket
begins, and the bits of a row depend neither on its place nor on its neighbours, and are the same on any number of
ranks.

Shapes: R = tangents of this rank, C = tangents in a chunk, H = numbers in use at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fds_dist.common.batch import Batch, Part
from fds_dist.inner.compiled_calls import CompiledCalls
from fds_dist.inner.rows import NO_ROWS, Rows, count_of
from fds_dist.inner.run import InnerState, Tangents
from fds_dist.inner.training import Training
from fds_dist.tangents import METHODS
from fds_dist.tangents.compiled import (
    ChunkTangents,
    CompiledSteps,
    StepFunction,
    StepInputs,
    StepOutputs,
    with_random_tangents,
)


class CompiledTraining:
    """The compiled steps of one inner run. Every rank of the run calls `take` alike.

    Args:
        discount: γ; see `Steps`.
    """

    def __init__(self, training: Training, discount: float = 1.0) -> None:
        problem = training.problem
        self._training = training
        self._steps: CompiledSteps = problem.compiled_steps
        self._function = StepFunction(
            training.loss,
            training.update,
            problem.theta,
            problem.tangents.clip_hvp,
            accumulate=problem.accumulate,
            axis=training.axis,
            whole_inputs=problem.reads_inputs,
            discount=discount,
            make_point=METHODS[
                "jvp" if discount or problem.theta_size else "plain"
            ],  # which needs no second derivative
        )
        self._calls = CompiledCalls(
            training.run, self._steps, training.network, self._function, self._reference, with_random_tangents
        )

    def take(
        self, batch: Batch, h: Tensor, tangents: Tangents, directions: Tensor, rows: Sequence[int]
    ) -> Tensor | None:
        """One step of the run, and of the tangents' `rows` in place.

        Returns:
            This rank's part of the training loss []; None where the step is to be taken eagerly.
        """
        training, steps = self._training, self._steps
        if not steps.takes(batch):
            return None
        state, network = training.state, training.network
        place = state.weights, state.optimizer, state.buffers, h, network.cast(Part(batch)).batch
        _, seed = training.problem.step_seeds(training.run.number, state.step, training.axis.rank, 0)

        def inputs(group: Rows, size: int) -> StepInputs:
            return StepInputs(*place, *chunk_of(tangents, directions, group, size))

        def step(group: Rows, size: int) -> StepOutputs:
            """Of the tangents of a group; what it gives beside them does not depend on the group."""
            outputs = self._calls(inputs(group, size), seed)
            store(outputs.tangents, tangents, group)
            return outputs

        if not self._calls.ready(lambda: inputs(NO_ROWS, steps.chunk), seed):
            return None
        sizes = steps.calls_for(max(1, len(rows)))
        # Without tangents, the step of no tangent.
        *others, last = zip(training.row_groups(rows, sizes) if rows else [NO_ROWS], sizes, strict=True)
        for call in others:
            step(*call)  # whose outputs are gone before the next one's are made
        outputs = step(*last)
        training.state = InnerState(state.step + 1, outputs.weights, outputs.optimizer, outputs.buffers)
        return outputs.loss

    def _reference(self, seed: int) -> Callable[[StepInputs], StepOutputs]:
        """The eager step, by the method of the problem and one tangent at a time.

        Where random masks are drawn, it is the very step that was traced: on a GPU the methods, and batched and single
        tangents, draw them by different kernels.
        """
        if self._steps.graph.draws:
            return partial(self._function, seed=seed)
        return partial(
            replace(self._function, make_point=self._training.problem.make_point, vectorize=False), seed=seed
        )


def chunk_of(tangents: Tangents, directions: Tensor, group: Rows, chunk: int) -> tuple[ChunkTangents, Tensor]:
    """The tangents of `group` with their directions [C, H], filled up with zeros."""
    carried = ChunkTangents(tangents.weights, tangents.optimizer, tangents.buffers)
    if count_of(group) == len(tangents.weights) == len(directions) == chunk:
        return carried, directions

    def rows_of(tensor: Tensor) -> Tensor:
        rows = tensor[group]
        if len(rows) == chunk:
            return rows
        filled = tensor.new_zeros((chunk, *tensor.shape[1:]))
        filled[: len(rows)] = rows
        return filled

    return tree_map(rows_of, carried), rows_of(directions)


def store(outputs: ChunkTangents, tangents: Tangents, group: Rows) -> None:
    """Writes the rows of a chunk to their places. Where they are all there are, they become the tangents, uncopied."""
    count = count_of(group)
    rows = outputs if len(outputs.weights) == count else tree_map(lambda tensor: tensor[:count], outputs)
    if count == len(tangents.weights) and can_be_written(tree_leaves(rows)):
        tangents.weights, tangents.optimizer, tangents.buffers = rows
        return
    carried = ChunkTangents(tangents.weights, tangents.optimizer, tangents.buffers)
    tree_map(lambda tensor, part: tensor.__setitem__(group, part), carried, rows)


def can_be_written(tensors: Sequence[Tensor]) -> bool:
    """Whether each has memory of its own, as tangents that an eager step writes to must: results may share theirs."""
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return len(places) == len(tensors) and all(tensor.is_contiguous() for tensor in tensors)
