"""The plain training of an inner run: where it stands, and its next step.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), H = numbers
in use at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from fds_dist.common.batch import micro_batches
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.inner.problem import Problem
from fds_dist.inner.rows import RowGroups
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents import (
    AccumulatedPoint,
    Batch,
    Buffers,
    MicroBatch,
    Network,
    PointInputs,
    SplitPoint,
    SummedPoint,
    TrainingLoss,
    Update,
)
from fds_dist.tangents.optimizers import judged, judges_average


class Training:
    """The primal of an inner run: where it stands, and its next step. Tangents only watch."""

    def __init__(self, run: InnerRun) -> None:
        self.run, self.problem, self.axis = run, run.problem, run.ranks.data
        self.network: Network = self.problem.network(run.number)
        self.width = len(self.network.initial_weights)
        self.columns = self.axis.columns(self.width)
        self.update: Update = self.problem.update(self.network, self.columns, self.axis.differentiable_sum)
        self.state = initial_state(self.problem, self.network, self.columns)
        self.loss: TrainingLoss = self.problem.training_loss(self.network)
        self.row_groups = RowGroups(self.problem.device)
        self._batches: Iterator[Batch] | None = None

    @property
    def local_state(self) -> InnerState:
        """The state with this rank's columns of the weights [S] alone."""
        state = self.state
        return InnerState(state.step, state.weights[self.columns], state.optimizer, state.buffers)

    @property
    def judged_state(self) -> InnerState:
        """See `judged_state`."""
        return judged_state(self.problem, self.network, self.state, self.axis)

    def next_batch(self) -> Batch:
        """The batch of the next step, as the task gives it."""
        if self._batches is None:
            self._batches = self.problem.batches(self.run.number, self.state.step)
        return next(self._batches)

    def point(self, theta: Tensor, batch: Batch | None = None) -> SummedPoint:
        """The training loss of `batch` at the present state: this rank's columns and its part of the loss.

        Micro-batches are cut from the whole batch and then split over the `data` axis, so that they are the same
        samples on any number of ranks.

        Args:
            batch: that of `next_batch`; None: asks for it.
        """
        whole = self.next_batch() if batch is None else batch
        parts = [
            MicroBatch(partial(self._split_point, batch, index, theta), fraction)
            for index, (batch, fraction) in enumerate(micro_batches(whole, self.problem.accumulate))
        ]
        if len(parts) == 1:
            return parts[0].at(self.state.buffers)
        return AccumulatedPoint(parts, self.state.buffers, self.axis.ahead)

    def _split_point(self, batch: Batch, micro_batch: int, theta: Tensor, buffers: Buffers) -> SummedPoint:
        of_all, here = self.problem.step_seeds(self.run.number, self.state.step, self.axis.rank, micro_batch)
        split = self.axis.split(batch, self.problem.reads_inputs)
        part = replace(self.network.cast(split), seed=of_all)
        weights, vectorize = self.state.weights, self.problem.chunk_size > 1
        inputs = PointInputs(self.loss, weights, theta, buffers, part, vectorize, here)
        return SplitPoint(partial(self.problem.make_point, inputs), self.axis, self.width)

    def step(self, point: SummedPoint, h: Tensor) -> None:
        """Moves to the state after one inner step with the gradient at `point` and h [H]."""
        self.begin_step(point, h)()

    def begin_step(self, point: SummedPoint, h: Tensor) -> Callable[[], None]:
        """Sends this rank's weights after the step to the others; the result ends the step, as `step` does."""
        here = self.local_state
        weights, optimizer = self.update(here.weights, here.optimizer, point.gradient, h)
        sent = self.axis.send_gather(weights, self.width)

        def end() -> None:
            self.state = InnerState(here.step + 1, sent.wait(), optimizer, point.buffers)

        return end


def judged_state(problem: Problem, network: Network, state: InnerState, axis: DataAxis | None = None) -> InnerState:
    """The state with what is validated in place of the weights, whole [D]: their average, where there is one.

    Args:
        axis: along which each rank has some columns of the optimizer's state; None: the state is whole.
    """
    rule, axis = problem.rule(network.layout), axis or DataAxis()
    if not judges_average(rule):
        return state
    width = len(state.weights)
    columns = judged(rule, state.weights[axis.columns(width)], state.optimizer)
    return replace(state, weights=axis.gather(columns, width))


def initial_state(problem: Problem, network: Network, columns: slice = slice(None)) -> InnerState:
    """The state before the first step, with the optimizer's state of the weights in `columns`."""
    weights = network.initial_weights
    state = problem.rule(network.layout).init(weights[columns])
    return InnerState(0, weights, state, network.initial_buffers)
