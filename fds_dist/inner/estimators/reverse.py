"""Reverse-mode differentiation of the whole inner run, with checkpoints over time.

The adjoints (w̄, s̄) of the final state are pulled back step by step through s, w ← U(w, s, ∇L(w), h):

    (w̄, s̄, h̄) ← (w̄, s̄) · ∂U∘∇L / ∂(w, s, h),    λ̄_k += h̄ · (the weight with which h reads element k).

The cost is 4 plain steps per step whatever K is: one to get there, and a pull-back that takes the step once more (one)
and goes back through it (two). That needs the state of every step: memory O(T·D). Where these do not fit, states are
kept every ⌈√T⌉ steps and recomputed in between: memory O(√T·D), 5 plain steps. The sweep is sequential: every rank
repeats it. It shares no derivative code with the forward estimator, and so serves as its check.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.common.batch import micro_batches
from fds_dist.inner.estimate import Estimate, finished_run, lost_run, validate
from fds_dist.inner.plan import stretch
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.inner.training import initial_state
from fds_dist.schedule.buckets import Segment
from fds_dist.tangents import Batch, Network, TrainingLoss
from fds_dist.tangents.averaging import judged


class ReverseSweep:
    """One inner run that can be replayed from any of its steps and pulled back through.

    Every kept state holds the buffers of its step, so that a replay meets what the run met.
    """

    def __init__(self, run: InnerRun) -> None:
        self.run, self.problem, self.axis = run, run.problem, run.ranks.data
        self.network: Network = self.problem.network(run.number)
        self.update = self.problem.update(self.network)
        self.loss: TrainingLoss = self.problem.training_loss(self.network)
        self.start = initial_state(self.problem, self.network)

        self.segments = list(run.segments())

    def segment(self, step: int) -> Segment:
        """The segment that `step` lies in."""
        return self.segments[bisect_right(self.segments, step, key=lambda segment: segment.start) - 1]

    def hyperparameters(self, step: int) -> Tensor:
        """h [H] at `step`."""
        return self.run.hyperparameters[self.segment(step).row(step)]

    def add(self, total: Tensor, step: int, by_h: Tensor) -> None:
        """Adds the derivative by h [H] at `step` to that by λ, `total` [K]."""
        space = self.problem.space
        readings = space.readings(step, self.run.horizon)
        for owner in space.learned:
            for bucket, weight in readings[owner.name]:
                total[space.part(owner, bucket)] += weight * by_h[space.columns[owner.name]].double()

    def differentiable_step(
        self, state: InnerState, h: Tensor, batch: Batch, create_graph: bool
    ) -> tuple[InnerState, Tensor]:
        """One inner step, differentiable by state and `h` where `create_graph`; and its loss, detached."""
        weights = state.weights if state.weights.requires_grad else state.weights.detach().requires_grad_()
        read, theta, buffers = self.axis.spread(weights), self.problem.theta(h), state.buffers
        own_theta = self.axis.spread(theta)
        gradients, losses = [], []
        for index, (part, fraction) in enumerate(micro_batches(batch, self.problem.accumulate)):
            seeds = [self.problem.step_seed(self.run.number, state.step, at, index) for at in (0, self.axis.rank)]
            self.network.seed(seeds[1])
            split = replace(self.network.cast(self.axis.split(part, self.problem.reads_inputs)), seed=seeds[0])
            loss, buffers = self.loss(read, theta, buffers, split, own_theta=own_theta)
            (gradient,) = self.network.differentiate(loss, read, create_graph=create_graph)
            gradients.append(gradient * fraction)
            losses.append(loss.detach() * fraction)
        gradient = self.axis.collect(sum(gradients[1:], gradients[0]))
        new_weights, optimizer = self.update(weights, state.optimizer, gradient, h)
        after = InnerState(state.step + 1, new_weights, optimizer, buffers)
        return (after if create_graph else _detached(after)), sum(losses[1:], losses[0])

    def batches(self, step: int, stop: int) -> Iterator[Batch]:
        """The training batches of the steps from `step` to `stop`."""
        return islice(self.problem.batches(self.run.number, step), stop - step)

    def replay(self, start: InnerState, stop: int) -> Iterator[tuple[InnerState, Batch, Tensor, InnerState]]:
        """Steps from `start` to `stop`: (state before, batch, loss, state after)."""
        state = start
        for batch in self.batches(start.step, stop):
            after, loss = self.differentiable_step(state, self.hyperparameters(state.step), batch, create_graph=False)
            yield state, batch, loss, after
            state = after

    def differentiable_parts(self, state: InnerState) -> list[Tensor]:
        """What adjoints are taken of: the weights, the optimizer's tensors and the live buffers."""
        live = {name: state.buffers[name] for name in self.network.live}
        return tree_flatten((state.weights, state.optimizer, live))[0]

    def pull_back(self, state: InnerState, batch: Batch, adjoints: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Adjoints of the state after a step to those of the state before it and of h [H]."""
        live = {name: state.buffers[name] for name in self.network.live}
        parts, spec = tree_flatten((state.weights, state.optimizer, live))
        leaves = [part.detach().requires_grad_() for part in parts]
        h = self.hyperparameters(state.step).detach().requires_grad_()
        weights, optimizer, live = tree_unflatten(leaves, spec)
        before = InnerState(state.step, weights, optimizer, {**state.buffers, **live})
        after, _ = self.differentiable_step(before, h, batch, create_graph=True)
        outputs = self.differentiable_parts(after)
        pairs = [(out, bar) for out, bar in zip(outputs, adjoints, strict=True) if out.requires_grad]
        pulled = self.network.differentiate(
            [out for out, _ in pairs], [*leaves, h], [bar for _, bar in pairs], materialize_grads=True
        )
        return list(pulled[:-1]), pulled[-1]


def estimate_reverse(run: InnerRun) -> Estimate:
    """See `Estimator`; the sweep spreads over the `data` axis alone, with the whole state on every rank."""
    sweep, axis, horizon = ReverseSweep(run), run.ranks.data, run.horizon
    spacing = 1 if run.problem.keeps_every_state(horizon) else stretch(horizon)
    state, kept = sweep.start, [sweep.start]
    for _, _, loss, state in sweep.replay(sweep.start, horizon):
        if state.step % spacing == 0 and state.step < horizon:
            kept.append(state)
        if not run.on_step(state, loss / axis.size):
            break
    validation = validate(run.problem, sweep.network, state, run.number, axis)
    if state.step < horizon:
        return lost_run(run, validation, state.step)
    assert validation.gradient is not None
    sweep.network.train()
    total = torch.zeros(run.problem.space.size, dtype=torch.float64, device=run.problem.device)
    by_buffers = [
        validation.buffer_gradients[name] for name in sweep.network.live
    ]  # parts, which add up in the network
    adjoints = [*_final_adjoints(state, axis.sum(validation.gradient)), *by_buffers]
    for start in reversed(range(0, horizon, stretch(horizon))):
        stop = min(start + stretch(horizon), horizon)
        if spacing == 1:
            steps = list(zip(kept[start:], sweep.batches(start, stop), strict=True))
            del kept[start:]
        else:
            steps = [(before, batch) for before, batch, _, _ in sweep.replay(kept.pop(), stop)]
        while steps:  # taken out one by one, or the next stretch would be replayed beside this one
            before, batch = steps.pop()
            adjoints, by_h = sweep.pull_back(before, batch, adjoints)
            sweep.add(total, before.step, by_h)
    return finished_run(run, validation, total.tolist())


def _final_adjoints(state: InnerState, gradient: Tensor) -> tuple[Tensor, ...]:
    """∇L_val by the weights and the optimizer's tensors, from that by what is judged of them [D]."""
    parts, spec = tree_flatten((state.weights, state.optimizer))
    leaves = [part.detach().requires_grad_() for part in parts]
    return torch.autograd.grad(judged(*tree_unflatten(leaves, spec)), leaves, gradient, materialize_grads=True)


def _detached(state: InnerState) -> InnerState:
    parts, spec = tree_flatten((state.weights, state.optimizer, state.buffers))
    weights, optimizer, buffers = tree_unflatten([part.detach() for part in parts], spec)
    return replace(state, weights=weights, optimizer=optimizer, buffers=buffers)
