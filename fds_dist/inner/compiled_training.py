"""The steps of an inner run as one compiled call per chunk of tangents, where that can be and is right.

Tangents come in chunks of a fixed size, padded with zeros: nothing is compiled anew when a bucket begins, and the bits
of a row depend neither on its place nor on its neighbours, so that they are the same on any number of ranks.

Shapes: R = tangents of this rank, C = tangents in a chunk, H = numbers in use at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.batch import Batch, Part
from fds_dist.inner.rows import NO_ROWS, Rows
from fds_dist.inner.run import InnerState, Tangents
from fds_dist.inner.training import Training
from fds_dist.tangents.compiled import (
    WAYS,
    ChunkTangents,
    CompiledSteps,
    StepFunction,
    StepInputs,
    StepOutputs,
    with_random_tangents,
)

COMPARED = 2
"""Steps of each inner run, the first ones on a compiled shape, that are compared with the eager ones."""


class CompiledTraining:
    """The compiled steps of one inner run. Every rank of the run calls `take` alike."""

    def __init__(self, training: Training) -> None:
        problem = training.problem
        self._training, self._theta = training, problem.theta
        self._steps: CompiledSteps = problem.compiled_steps
        self._to_compare = COMPARED
        self._function = StepFunction(training.loss, training.update, problem.theta, problem.tangents.clip_hvp)

    def take(
        self, batch: Batch, h: Tensor, tangents: Tangents, directions: Tensor, rows: Sequence[int]
    ) -> Tensor | None:
        """One step of the run, and of the tangents' `rows` in place.

        Returns:
            The training loss []; None where the step is to be taken eagerly.
        """
        training, steps = self._training, self._steps
        if not steps.takes(batch):
            return None
        state, network = training.state, training.network
        place = state.weights, state.optimizer, state.buffers, h, network.cast(Part(batch)).batch
        seed = training.problem.step_seed(training.run.number, state.step)
        if self._to_compare:
            self._to_compare -= 1
            self._prepare(lambda: StepInputs(*place, *chunk_of(tangents, directions, NO_ROWS, steps.chunk)), seed)
            if not steps.way:
                return None
        outputs: StepOutputs | None = None
        # Without tangents, the step of no tangent.
        for group in training.row_groups(rows, steps.chunk) if rows else [NO_ROWS]:
            outputs = steps(StepInputs(*place, *chunk_of(tangents, directions, group, steps.chunk)), network, seed)
            store(outputs.tangents, tangents, group)
        assert outputs is not None
        training.state = InnerState(state.step + 1, outputs.weights, outputs.optimizer, outputs.buffers)
        return outputs.loss

    def _prepare(self, inputs: Callable[[], StepInputs], seed: int) -> None:
        """Makes the graphs where there are none, and compares them with the eager step; the ranks agree on the way."""
        steps, problem = self._steps, self._training.problem
        while not steps.made:
            independent, reason = steps.make(self._function, with_random_tangents(inputs()), seed)
            self._note(reason)
            if not self._agreed(independent, reason) and problem.device.type == "cpu":
                steps.one_at_a_time()
                self._note("tangents are taken one at a time, as their bits depend on their neighbours'")
        if steps.way:
            reason = steps.compare(self._function, problem.make_point, with_random_tangents(inputs()), seed)
            self._note(reason)
            self._agreed(True, reason)

    def _agreed(self, independent: bool, reason: str) -> bool:
        """Takes the furthest way that all ranks can go; whether the rows are independent on all of them."""
        steps = self._steps
        numbers = self._training.run.ranks.gather_numbers("tangent", [float(steps.way), float(independent)])
        way, all_independent = (min(column) for column in zip(*numbers, strict=True))
        if way < steps.way and not reason:
            self._note("another rank cannot take its steps as this one does")
        steps.way = int(way)
        return bool(all_independent)

    def _note(self, reason: str) -> None:
        if reason:
            way = WAYS[self._steps.way]
            self._training.run.note(f"{reason}; steps are taken " + ("eagerly" if way == "off" else f"by {way}"))


def chunk_of(tangents: Tangents, directions: Tensor, group: Rows, chunk: int) -> tuple[ChunkTangents, Tensor]:
    """The tangents of `group` with their directions [C, H], filled up with zeros."""

    def rows_of(tensor: Tensor) -> Tensor:
        rows = tensor[group]
        if len(rows) == chunk:
            return rows
        filled = tensor.new_zeros((chunk, *tensor.shape[1:]))
        filled[: len(rows)] = rows
        return filled

    carried = ChunkTangents(tangents.weights, tangents.optimizer, tangents.buffers)
    return tree_map(rows_of, carried), rows_of(directions)


def store(outputs: ChunkTangents, tangents: Tangents, group: Rows) -> None:
    """Writes the rows of a chunk to their places."""

    def write(tensor: Tensor, rows: Tensor) -> None:
        places = tensor[group]
        tensor[group] = rows[: len(places)]

    tree_map(write, ChunkTangents(tangents.weights, tangents.optimizer, tangents.buffers), outputs)
