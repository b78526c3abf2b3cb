"""Reverse-mode differentiation of the whole inner run, with checkpoints over time.

The adjoints (w̄, s̄) of the final state are pulled back step by step through s, w ← U(w, s, ∇L(w), h):

    (w̄, s̄, h̄) ← (w̄, s̄) · ∂U∘∇L / ∂(w, s, h),    λ̄_k += h̄ where bucket k is in use.

States are kept every ⌈√T⌉ steps and recomputed in between: memory O(√T·D), about 4 plain steps per step whatever K is
(one to get there, one to come back to each segment, two to pull back). The sweep is sequential: every rank repeats it.
It shares no derivative code with the forward estimator, and so serves as its check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import Estimate, lost_run, validate
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerState, Keeper, OnStep, initial_state
from fds_dist.schedule.buckets import Segment, bucket_of
from fds_dist.tangents import Batch, Network, TrainingLoss, differentiate


class ReverseSweep:
    """One inner run that can be replayed from any of its steps and pulled back through."""

    def __init__(
        self, problem: Problem, values: Sequence[float], outer_step: int, horizon: int, axis: DataAxis
    ) -> None:
        self.problem, self.values, self.outer_step, self.horizon = problem, values, outer_step, horizon
        self.axis = axis
        self.network: Network = problem.network(outer_step)
        self.update = problem.update(self.network)
        self.loss: TrainingLoss = problem.training_loss(self.network)

    def columns(self, step: int) -> list[int]:
        """The elements of λ that `step` reads, in the order of the learned hyperparameters."""
        first, columns = 0, []
        for owner in self.problem.space.learned:
            columns.append(first + bucket_of(step, owner.buckets, self.horizon))
            first += owner.buckets
        return columns

    def hyperparameters(self, step: int) -> Tensor:
        """h [H] at `step`."""
        counts = self.problem.space.bucket_counts
        buckets = {name: bucket_of(step, count, self.horizon) for name, count in counts.items()}
        return self.problem.values_in(Segment(step, step + 1, buckets), self.values)

    def differentiable_step(
        self, state: InnerState, h: Tensor, batch: Batch, create_graph: bool
    ) -> tuple[InnerState, Tensor]:
        """One inner step, differentiable by state and `h` where `create_graph`; and its loss here, detached."""
        self.network.seed(self.problem.step_seed(self.outer_step, state.step, self.axis.rank))
        part, self.network.share = self.axis.split(batch)
        weights = state.weights if state.weights.requires_grad else state.weights.detach().requires_grad_()
        read = self.axis.spread(weights)
        loss, statistics = self.loss(read, self.axis.spread(self.problem.theta(h)), self.network.cast(part))
        (gradient,) = differentiate(loss, read, create_graph=create_graph)
        new_weights, optimizer = self.update(weights, state.optimizer, self.axis.collect(gradient), h)
        if not create_graph:
            new_weights = new_weights.detach()
            self.network.update_statistics(statistics)
        return InnerState(state.step + 1, new_weights, optimizer), loss.detach()

    def replay(self, start: InnerState, stop: int) -> Iterator[tuple[InnerState, Batch, Tensor, InnerState]]:
        """Steps from `start` to `stop`: (state before, batch, loss, state after)."""
        batches = self.problem.batches(self.outer_step, start.step)
        state = start
        while state.step < stop:
            batch = next(batches)
            after, loss = self.differentiable_step(state, self.hyperparameters(state.step), batch, create_graph=False)
            after = InnerState(after.step, after.weights, _detach(after.optimizer))
            yield state, batch, loss, after
            state = after

    def pull_back(self, state: InnerState, batch: Batch, adjoints: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Adjoints of the state after a step to those of the state before it and of h [H]."""
        parts, spec = tree_flatten((state.weights, state.optimizer))
        leaves = [part.detach().requires_grad_() for part in parts]
        h = self.hyperparameters(state.step).requires_grad_()
        weights, optimizer = tree_unflatten(leaves, spec)
        after, _ = self.differentiable_step(InnerState(state.step, weights, optimizer), h, batch, create_graph=True)
        outputs = tree_flatten((after.weights, after.optimizer))[0]
        pairs = [(out, bar) for out, bar in zip(outputs, adjoints, strict=True) if out.requires_grad]
        pulled = differentiate(
            [out for out, _ in pairs], [*leaves, h], [bar for _, bar in pairs], materialize_grads=True
        )
        return list(pulled[:-1]), pulled[-1]


def checkpoint_spacing(horizon: int) -> int:
    """Steps from one kept state to the next: ⌈√T⌉."""
    return max(1, isqrt(horizon - 1) + 1)


def estimate_reverse(
    problem: Problem,
    values: Sequence[float],
    outer_step: int,
    horizon: int,
    ranks: Ranks,
    on_step: OnStep,
    keeper: Keeper | None = None,
) -> Estimate:
    """See `Estimator`; the sweep spreads over the `data` axis alone, with the whole state on every rank."""
    sweep = ReverseSweep(problem, values, outer_step, horizon, ranks.data)
    spacing = checkpoint_spacing(horizon)
    start = state = initial_state(problem, sweep.network)
    checkpoints = [start]
    for _, _, loss, state in sweep.replay(start, horizon):
        if state.step % spacing == 0 and state.step < horizon:
            checkpoints.append(state)
        if not on_step(state, loss):
            break
    validation = validate(problem, sweep.network, state.weights, outer_step, ranks.data)
    if state.step < horizon:
        return lost_run(problem, validation)
    sweep.network.train()
    total = torch.zeros(problem.space.size, dtype=torch.float64, device=problem.device)
    final = tree_flatten(state.optimizer)[0]
    adjoints = [ranks.data.sum(validation.gradient), *map(torch.zeros_like, final)]
    stop, learned = horizon, len(problem.space.learned)
    for start in reversed(checkpoints):
        steps = [(before, batch) for before, batch, _, _ in sweep.replay(start, stop)]
        while steps:  # taken out one by one, or the next stretch would be replayed beside this one
            before, batch = steps.pop()
            adjoints, by_h = sweep.pull_back(before, batch, adjoints)
            total[sweep.columns(before.step)] += by_h[:learned].double()
        stop = start.step
    return Estimate(total.tolist(), validation.loss, validation.accuracy)


def _detach(tree: object) -> object:
    parts, spec = tree_flatten(tree)
    return tree_unflatten([part.detach() for part in parts], spec)
