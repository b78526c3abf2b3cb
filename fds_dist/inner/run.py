"""One horizon: the primal training run and the tangents that this rank owns, side by side.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), K = learned
numbers, H = hyperparameters in use, R = tangents that this rank of the `tangent` axis owns, in order of their first
steps, so that the live ones are a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.inner.problem import Problem
from fds_dist.schedule.buckets import Segment, bucket_of, bucket_window, segments
from fds_dist.schedule.space import Hyperparameter
from fds_dist.tangents import Network, Point, Update, tangent_step
from fds_dist.tangents.batch_norm import Statistics
from fds_dist.tangents.step import Pruning


@dataclass
class InnerState:
    """Where a run stands after `step` steps."""

    step: int
    weights: Tensor  # [D]
    optimizer: Any  # NamedTuple of tensors [S] or []


@dataclass
class Tangents:
    """Derivatives of the inner state by the elements of λ that this rank owns."""

    elements: tuple[int, ...]  # [R] positions in λ, by first step
    weights: Tensor  # [R, S] Z
    optimizer: Any  # tensors [R, ...], one per tensor of the optimizer's state


ALONE = DataAxis()


class SplitPoint:
    """The training loss at one point, its batch split over the `data` axis: this rank's columns of every vector."""

    def __init__(self, point: Point, axis: DataAxis, width: int) -> None:
        self._point, self._axis, self._width = point, axis, width

    def products(self, tangents: Tensor, theta_tangents: Tensor) -> Tensor:
        """dg [C, S] for dw [C, S] and dθ [C, P]."""
        return self._axis.reduce(self._point.products(self._axis.gather(tangents, self._width), theta_tangents))

    @cached_property
    def gradient(self) -> Tensor:
        """g [S]; asked for after the first products, which give it along the way by some methods."""
        return self._axis.reduce(self._point.gradient)

    @property
    def loss(self) -> Tensor:
        """This rank's part of L."""
        return self._point.loss

    @property
    def statistics(self) -> Statistics:
        """See `Point`."""
        return self._point.statistics


OnStep = Callable[[InnerState, Tensor], bool]
"""(state after a step, this rank's part of its training loss [] on the device) → whether to go on. Called on every rank
of an inner run alike."""


class Keeper(Protocol):
    """Keeps what an inner run has so far, so that one that was cut off can go on."""

    def restore(self, network: Network, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
        """Where the run was kept last, the network's buffers included; the initial state, given, if it never was."""
        ...

    def keep(self, network: Network, state: InnerState, tangents: Tangents) -> None:
        """Called after each step, on every rank alike; now and then keeps what it is given."""
        ...


def zero_tangents(state: InnerState, elements: Sequence[int], axis: DataAxis) -> Tangents:
    """Tangents of an initial state, which does not depend on λ."""
    rows = len(elements)
    own = state.weights[axis.columns(len(state.weights))]

    def zeros(tensor: Tensor) -> Tensor:
        return tensor.new_zeros((rows, *tensor.shape))

    return Tangents(tuple(elements), zeros(own), tree_map(zeros, state.optimizer))


def initial_state(problem: Problem, network: Network, axis: DataAxis = ALONE) -> InnerState:
    """The state before the first step."""
    weights = network.initial_weights
    return InnerState(0, weights, problem.optimizer.init(weights[axis.columns(len(weights))]))


def run_horizon(
    problem: Problem,
    network: Network,
    values: Sequence[float],
    outer_step: int,
    horizon: int,
    elements: Sequence[int],
    on_step: OnStep,
    axis: DataAxis = ALONE,
    keeper: Keeper | None = None,
) -> tuple[InnerState, Tangents]:
    """Trains for `horizon` steps with λ = `values` [K], pushing the tangents of `elements` along.

    `elements` must be in order of their first steps. Ends early where `on_step` says so. Goes on from where `keeper`
    kept it.
    """
    state = initial_state(problem, network, axis)
    tangents = zero_tangents(state, elements, axis)
    if keeper is not None:
        state, tangents = keeper.restore(network, state, tangents)
    loss, batches = problem.training_loss(network), problem.batches(outer_step, state.step)
    width = len(state.weights)
    own = axis.columns(width)
    update = problem.update(network, own)
    starts = problem.space.starts(horizon)
    vectorize = problem.chunk_size > 1
    owners = [problem.space.elements[element][0] for element in elements]
    for segment in segments(problem.space.bucket_counts, horizon):
        h = problem.values_in(segment, values)
        theta = problem.theta(h)
        live = sum(starts[element] <= segment.start for element in elements)
        directions = one_hot_directions(problem, segment, elements[:live])
        for step in range(max(segment.start, state.step), segment.stop):
            part, network.share = axis.split(next(batches))
            seed = problem.step_seed(outer_step, step, axis.rank)
            local = problem.make_point(loss, state.weights, theta, network.cast(part), seed, vectorize)
            point = SplitPoint(local, axis, width)
            here = InnerState(step, state.weights[own], state.optimizer)
            rows = updated_rows(problem.tangents.pruning, owners[:live], step, horizon)
            advance_tangents(problem, point, update, here, h, tangents, directions, rows)
            weights, optimizer = update(here.weights, here.optimizer, point.gradient, h)
            network.update_statistics(point.statistics)
            state, step_loss = InnerState(step + 1, axis.gather(weights, width), optimizer), point.loss
            del local, point  # and their graph, before the next one is made
            if not on_step(state, step_loss):
                return state, tangents
            if keeper is not None:
                keeper.keep(network, state, tangents)
    return state, tangents


def one_hot_directions(problem: Problem, segment: Segment, elements: Sequence[int]) -> Tensor:
    """dh [R, H] on `segment`: 1 where an element of λ is the bucket in use of its hyperparameter."""
    names = problem.space.names
    directions = torch.zeros(len(elements), len(names), dtype=problem.dtype)
    for row, element in enumerate(elements):
        owner, bucket = problem.space.elements[element]
        if segment.buckets[owner.name] == bucket:
            directions[row, names.index(owner.name)] = 1.0
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
    problem: Problem,
    point: SplitPoint,
    update: Update,
    here: InnerState,
    h: Tensor,
    tangents: Tangents,
    directions: Tensor,
    rows: Sequence[int],
) -> None:
    """One tangent step of `rows`, in place and chunk by chunk, so that only one chunk's temporaries exist at a time.

    `here` is the state with this rank's columns of the weights.
    """
    clip = problem.tangents.clip_hvp
    vectorize = problem.chunk_size > 1
    for chunk in chunks(rows, problem.chunk_size):
        dw, dh = tangents.weights[chunk], directions[chunk]
        ds = tree_map(lambda tensor, chunk=chunk: tensor[chunk], tangents.optimizer)
        dg = point.products(dw, problem.theta(dh))
        if clip is not None:
            dg = dg.clamp(-clip, clip)
        primals = (here.weights, here.optimizer, point.gradient, h)
        new_dw, new_ds = tangent_step(update, primals, (dw, ds, dg, dh), vectorize)
        tangents.weights[chunk] = new_dw
        tree_map(lambda tensor, new, chunk=chunk: tensor.__setitem__(chunk, new), tangents.optimizer, new_ds)


def chunks(rows: Sequence[int], size: int) -> Iterator[slice | list[int]]:
    """`rows` in groups of at most `size`; contiguous groups as slices, which are views and copy nothing."""
    for first in range(0, len(rows), size):
        group = list(rows[first : first + size])
        contiguous = group[-1] - group[0] + 1 == len(group)
        yield slice(group[0], group[-1] + 1) if contiguous else group
