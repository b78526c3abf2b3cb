"""One inner run: what defines it, its plain training step, and the tangents that this rank pushes along.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), K = learned
numbers, H = numbers in use at a step, R = tangents that this rank of the `tangent` axis owns, in order of their first
steps, so that the live ones are a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.batch import micro_batches
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.problem import Problem
from fds_dist.schedule.buckets import Segment, bucket_of, bucket_window
from fds_dist.schedule.space import Hyperparameter
from fds_dist.tangents import (
    AccumulatedPoint,
    Batch,
    Buffers,
    MicroBatch,
    Network,
    Point,
    SplitPoint,
    Update,
    tangent_step,
)
from fds_dist.tangents.averaging import AveragedState
from fds_dist.tangents.step import Pruning


@dataclass
class InnerState:
    """Where a run stands after `step` steps."""

    step: int
    weights: Tensor  # [D]
    optimizer: Any  # pytree of tensors [S] or []
    buffers: Buffers = field(default_factory=dict)


@dataclass
class Tangents:
    """Derivatives of the inner state by the elements of λ that this rank owns."""

    elements: tuple[int, ...]  # [R] positions in λ, by first step
    weights: Tensor  # [R, S] Z
    optimizer: Any  # tensors [R, ...], one per tensor of the optimizer's state
    buffers: Buffers = field(default_factory=dict)  # [R, ...] of each live buffer


OnStep = Callable[[InnerState, Tensor], bool]
"""(state after a step, this rank's part of its training loss [] on the device) → whether to go on. Called on every rank
of an inner run alike."""


def go_on(state: InnerState, loss: Tensor) -> bool:
    """The `OnStep` that never ends a run."""
    return True


class RunCheckpointer(Protocol):
    """Keeps what an inner run has so far, so that one that was cut off can go on."""

    def restore(self, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
        """The state and tangents that were kept last; those given, which are the initial ones, if none were."""
        ...

    def keep(self, state: InnerState, tangents: Tangents) -> None:
        """Called after each step, on every rank alike; now and then keeps what it is given."""
        ...


ALONE = Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), torch.device("cpu"))
"""This process without any others."""


@dataclass(frozen=True)
class InnerRun:
    """One inner run: a problem at λ, the random numbers that it draws, its length, its ranks and who watches."""

    problem: Problem
    values: Sequence[float]  # [K] λ
    number: int
    """Of the outer step whose weights, split, batches and random numbers the run has."""
    horizon: int
    """Inner steps."""
    ranks: Ranks = ALONE
    """That share the run."""
    on_step: OnStep = go_on
    checkpointer: RunCheckpointer | None = None

    def segments(self) -> Iterator[Segment]:
        """The stretches of the horizon on which all hyperparameters are constant."""
        return self.problem.space.segments(self.horizon)

    def hyperparameters(self, segment: Segment) -> Tensor:
        """h [H] on `segment`."""
        return self.problem.values_in(segment, self.values)


class Training:
    """The primal of an inner run: where it stands, and its next step. Tangents only watch."""

    def __init__(self, run: InnerRun) -> None:
        self.run, self.problem, self.axis = run, run.problem, run.ranks.data
        self.network: Network = self.problem.network(run.number)
        self.width = len(self.network.initial_weights)
        self.columns = self.axis.columns(self.width)
        self.update: Update = self.problem.update(self.network, self.columns, self.axis.differentiable_sum)
        self.state = initial_state(self.problem, self.network, self.columns)
        self._loss = self.problem.training_loss(self.network)
        self._batches: Iterator[Batch] | None = None

    @property
    def local_state(self) -> InnerState:
        """The state with this rank's columns of the weights [S] alone."""
        state = self.state
        return InnerState(state.step, state.weights[self.columns], state.optimizer, state.buffers)

    @property
    def whole_state(self) -> InnerState:
        """The state, to be validated: the average of the weights, where there is one, is whole [D]."""
        optimizer = self.state.optimizer
        if not isinstance(optimizer, AveragedState):
            return self.state
        average = self.axis.gather(optimizer.average, self.width)
        return replace(self.state, optimizer=optimizer._replace(average=average))

    def point(self, theta: Tensor) -> Point:
        """The training loss of the next batch at the present state: this rank's columns and its part of the loss.

        Micro-batches are cut from the whole batch and then split over the `data` axis, so that they are the same
        samples on any number of ranks.
        """
        if self._batches is None:
            self._batches = self.problem.batches(self.run.number, self.state.step)
        parts = [
            MicroBatch(partial(self._split_point, batch, index, theta), fraction)
            for index, (batch, fraction) in enumerate(micro_batches(next(self._batches), self.problem.accumulate))
        ]
        if len(parts) == 1:
            return parts[0].at(self.state.buffers)
        return AccumulatedPoint(parts, self.state.buffers, self.problem.chunk_size)

    def _split_point(self, batch: Batch, micro_batch: int, theta: Tensor, buffers: Buffers) -> Point:
        seeds = [
            self.problem.step_seed(self.run.number, self.state.step, at, micro_batch) for at in (0, self.axis.rank)
        ]
        split = self.axis.split(batch, self.problem.reads_inputs)
        part, seed = replace(self.network.cast(split), seed=seeds[0]), seeds[1]
        weights, vectorize = self.state.weights, self.problem.chunk_size > 1
        point = self.problem.make_point(self._loss, weights, theta, buffers, part, seed, vectorize)
        return SplitPoint(point, self.axis, self.width)

    def step(self, point: Point, h: Tensor) -> None:
        """Moves to the state after one inner step with the gradient at `point` and h [H]."""
        here = self.local_state
        weights, optimizer = self.update(here.weights, here.optimizer, point.gradient, h)
        self.state = InnerState(here.step + 1, self.axis.gather(weights, self.width), optimizer, point.buffers)


def initial_state(problem: Problem, network: Network, columns: slice = slice(None)) -> InnerState:
    """The state before the first step, with the optimizer's state of the weights in `columns`."""
    weights = network.initial_weights
    state = problem.rule(network.layout).init(weights[columns])
    return InnerState(0, weights, state, network.initial_buffers)


def zero_tangents(local: InnerState, elements: Sequence[int], live: Sequence[str]) -> Tangents:
    """Tangents of an initial state, which does not depend on λ.

    Args:
        local: the state with this rank's columns of the weights.
        live: names of the live buffers.
    """
    rows = len(elements)

    def zeros(tensor: Tensor) -> Tensor:
        return tensor.new_zeros((rows, *tensor.shape))

    buffers = {name: zeros(local.buffers[name]) for name in live}
    return Tangents(tuple(elements), zeros(local.weights), tree_map(zeros, local.optimizer), buffers)


def run_horizon(
    run: InnerRun, elements: Sequence[int] = (), along: Callable[[Segment], Tensor] | None = None
) -> tuple[Training, Tangents]:
    """Trains over the horizon and pushes the tangents of `elements` along, which are in order of their first steps.

    Ends early where `on_step` says so. Goes on from where the checkpointer kept it.

    Args:
        along: dh [R, H] on a segment, for tangents along other directions of λ, which all live from the first step on;
            `elements` then are their numbers.
    """
    problem, training = run.problem, Training(run)
    tangents = zero_tangents(training.local_state, elements, problem.live_buffers)
    if run.checkpointer is not None:
        training.state, tangents = run.checkpointer.restore(training.state, tangents)
    starts = problem.space.starts(run.horizon)
    owners = [problem.space.elements[element].owner for element in elements]
    for segment in run.segments():
        h = run.hyperparameters(segment)
        theta = problem.theta(h)
        live = len(elements) if along else sum(starts[element] <= segment.start for element in elements)
        directions = along(segment) if along else element_directions(problem, segment, elements[:live])
        for step in range(max(segment.start, training.state.step), segment.stop):
            point = training.point(theta)
            rows = updated_rows(problem.tangents.pruning, owners[:live], step, run.horizon)
            advance_tangents(training, point, h, tangents, directions, rows)
            training.step(point, h)
            loss = point.loss
            del point  # and its graph, before the next one is made
            if not run.on_step(training.state, loss):
                return training, tangents
            if run.checkpointer is not None:
                run.checkpointer.keep(training.state, tangents)
    return training, tangents


def element_directions(problem: Problem, segment: Segment, elements: Sequence[int]) -> Tensor:
    """dh [R, H] on `segment`: the weight with which the hyperparameter reads the element of λ, 0 where it does not."""
    space = problem.space
    directions = torch.zeros(len(elements), sum(space.sizes.values()), dtype=problem.dtype)
    weights = {name: dict(readings) for name, readings in segment.readings.items()}
    for row, element in enumerate(elements):
        owner, bucket, entry = space.elements[element]
        directions[row, space.columns[owner.name].start + entry] = weights[owner.name].get(bucket, 0.0)
    return directions.to(problem.device)


def updated_rows(pruning: Pruning, owners: Sequence[Hyperparameter], step: int, horizon: int) -> Sequence[int]:
    """The rows whose tangents take part in `step`: all, but for those that pruning skips.

    `owners` are the hyperparameters that the rows' elements of λ belong to.
    """
    if not pruning.ratio:
        return range(len(owners))
    keeps = {}
    for owner in set(owners):
        window = bucket_window(bucket_of(step, owner.buckets, horizon), owner.buckets, horizon)
        keeps[owner] = pruning.keeps(step - window.start, len(window))
    return [row for row, owner in enumerate(owners) if keeps[owner]]


def advance_tangents(
    training: Training, point: Point, h: Tensor, tangents: Tangents, directions: Tensor, rows: Sequence[int]
) -> None:
    """One tangent step of `rows`, in place and chunk by chunk, so that only one chunk's temporaries exist at a time.

    Where micro-batches are summed, the products of all rows exist at once, and the updates follow chunk by chunk.
    """
    problem, here = training.problem, training.local_state
    clip = problem.tangents.clip_hvp
    vectorize = problem.chunk_size > 1
    for group in chunks(rows, problem.rows_at_once or max(1, len(rows))):
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


def within(group: slice | list[int], part: slice) -> slice | list[int]:
    """The `part` of a `group` of rows."""
    if isinstance(group, list):
        return group[part]
    return slice(group.start + part.start, min(group.start + part.stop, group.stop))


def chunks(rows: Sequence[int], size: int) -> Iterator[slice | list[int]]:
    """`rows` in groups of at most `size`; contiguous groups as slices, which are views and copy nothing."""
    for first in range(0, len(rows), size):
        group = list(rows[first : first + size])
        contiguous = group[-1] - group[0] + 1 == len(group)
        yield slice(group[0], group[-1] + 1) if contiguous else group
