"""Reverse-mode differentiation of the whole inner run, with checkpoints over time.

The adjoints (w̄, s̄) of the final state are pulled back step by step through s, w ← U(w, s, ∇L(w), h):

    (w̄, s̄, h̄) ← (w̄, s̄) · ∂U∘∇L / ∂(w, s, h),    λ̄_k += h̄ · (the weight with which h reads element k).

The cost is 4 plain steps per step whatever K is: one to get there, and a pull-back that takes the step once more (one)
and goes back through it (two). That needs the state of every step: memory O(T·D). Where these do not fit, states are
kept every ⌈√T⌉ steps and recomputed in between: memory O(√T·D), 5 plain steps. The sweep is sequential: every rank
repeats it. It shares no derivative code with the forward estimator, and so serves as its check.

A run that was cut off goes on from a checkpoint on its way there or back: every ⌈√T⌉-th state, the adjoints and λ̄.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.common.batch import micro_batches
from fds_dist.inner.checkpoint_files import Target
from fds_dist.inner.compiled_sweep import CompiledSweep
from fds_dist.inner.estimate import Estimate, Evaluation, finished_run, lost_run, validate
from fds_dist.inner.estimators.there_and_back import Place
from fds_dist.inner.plan import stretch
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.inner.training import initial_state, judged_state
from fds_dist.schedule.buckets import Segment
from fds_dist.tangents import Batch, Network, TrainingLoss
from fds_dist.tangents.optimizers import judged


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
        self.compiled = CompiledSweep(
            run, self.network, partial(self.differentiable_step, create_graph=False), self.pull_back
        )

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
            of_all, here = self.problem.step_seeds(self.run.number, state.step, self.axis.rank, index)
            self.network.seed(here)
            split = replace(self.network.cast(self.axis.split(part, self.problem.reads_inputs)), seed=of_all)
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
            after, loss = self.compiled.step(state, self.hyperparameters(state.step), batch)
            yield state, batch, loss, after
            state = after

    def differentiable_parts(self, state: InnerState) -> list[Tensor]:
        """What adjoints are taken of: the weights, the optimizer's tensors and the live buffers."""
        live = {name: state.buffers[name] for name in self.network.live}
        return tree_flatten((state.weights, state.optimizer, live))[0]

    def pull_back(
        self, state: InnerState, h: Tensor, batch: Batch, adjoints: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Adjoints of the state after a step with `h` [H] to those of the state before it and of h [H]."""
        live = {name: state.buffers[name] for name in self.network.live}
        parts, spec = tree_flatten((state.weights, state.optimizer, live))
        leaves = [part.detach().requires_grad_() for part in parts]
        h = h.detach().requires_grad_()
        weights, optimizer, live = tree_unflatten(leaves, spec)
        before = InnerState(state.step, weights, optimizer, {**state.buffers, **live})
        after, _ = self.differentiable_step(before, h, batch, create_graph=True)
        outputs = self.differentiable_parts(after)
        pairs = [(out, bar) for out, bar in zip(outputs, adjoints, strict=True) if out.requires_grad]
        pulled = self.network.differentiate(
            [out for out, _ in pairs], [*leaves, h], [bar for _, bar in pairs], materialize_grads=True
        )
        return list(pulled[:-1]), pulled[-1]

    def first_adjoints(self, state: InnerState, validation: Evaluation) -> list[Tensor]:
        """Of the final `state`. Those of live buffers are parts, which add up in the network."""
        assert validation.gradient is not None
        by_buffers = [validation.buffer_gradients[name] for name in self.network.live]
        return [*self._final_adjoints(state, self.axis.sum(validation.gradient)), *by_buffers]

    def _final_adjoints(self, state: InnerState, gradient: Tensor) -> tuple[Tensor, ...]:
        """∇L_val by the weights and the optimizer's tensors, from that by what is judged of them [D]."""
        parts, spec = tree_flatten((state.weights, state.optimizer))
        leaves = [part.detach().requires_grad_() for part in parts]
        average = judged(self.problem.rule(self.network.layout), *tree_unflatten(leaves, spec))
        return torch.autograd.grad(average, leaves, gradient, materialize_grads=True)

    def first_place(self) -> Place:
        """Where the run begins, or where its checkpointer has kept it."""
        total = torch.zeros(self.problem.space.size, dtype=torch.float64, device=self.problem.device)
        parts, live = self.differentiable_parts(self.start), len(self.network.live)
        place = Place(self.run.horizon, self.start, {}, parts, total, self.run.horizon, live)

        def plan(step: int) -> tuple[Place, list[Target]]:
            emptied = place.emptied(step)
            alike, unlike = emptied.targets(self.run.ranks)
            return emptied, [*alike, *unlike]

        if self.run.checkpointer is None:
            return place
        return self.run.checkpointer.restore_planned(len(self.start.weights), plan) or place

    def keep(self, place: Place) -> None:
        """Shows the checkpointer a place.

        Raises:
            KeyboardInterrupt: see `RunCheckpointer`.
        """
        if self.run.checkpointer is not None:
            width = len(place.state.weights)
            self.run.checkpointer.keep_tensors(place.step, width, lambda: place.to_write(self.run.ranks))

    def go_there(self, place: Place) -> None:
        """Takes the steps that are left of the horizon, and keeps states; ends early where `on_step` says so."""
        spacing = 1 if self.problem.keeps_every_state(place.horizon) else stretch(place.horizon)
        for before, _, loss, after in self.replay(place.state, place.horizon):
            place.state = after
            if before.step % spacing == 0:
                place.states[before.step] = before
            if not self.run.on_step(place.state, loss / self.axis.size):
                return
            self.keep(place)

    def come_back(self, place: Place) -> None:
        """Pulls the adjoints back through the steps that are left, stretch by stretch."""
        for start in reversed(range(0, place.left, stretch(place.horizon))):
            steps = self.states_before(place, start)
            while steps:  # taken out one by one, or the next stretch would be replayed beside this one
                before, batch = steps.pop()
                h = self.hyperparameters(before.step)
                place.adjoints, by_h = self.compiled.pull_back(before, h, batch, place.adjoints)
                self.add(place.total, before.step, by_h)
                place.left = before.step
                self.keep(place)
            del place.states[start]

    def states_before(self, place: Place, start: int) -> list[tuple[InnerState, Batch]]:
        """The state before each step from `start` to the last that is left, and its batch. Of the stretch, its first
        state stays kept."""
        first, stop = place.states[start], place.left
        others = [place.states.pop(step) for step in range(start + 1, stop) if step in place.states]
        if len(others) == stop - start - 1:
            return list(zip([first, *others], self.batches(start, stop), strict=True))
        others.clear()  # a run that goes on has some of them alone
        steps = list[tuple[InnerState, Batch]]()
        for before, batch, _, _ in self.replay(first, stop):
            steps.append((before, batch))
            self.keep(place)  # which is where it was, but a process alone need not wait for the stretch to end
        return steps


def estimate_reverse(run: InnerRun) -> Estimate:
    """See `Estimator`; the sweep spreads over the `data` axis alone, with the whole state on every rank."""
    sweep = ReverseSweep(run)
    with run.checkpointer or nullcontext():
        place = sweep.first_place()
        if place.state.step < run.horizon:
            sweep.go_there(place)
        averaged = judged_state(run.problem, sweep.network, place.state)
        validation = validate(run.problem, sweep.network, averaged, run.number, sweep.axis)
        if place.state.step < run.horizon:
            return lost_run(run, validation, place.state.step)
        sweep.network.train()
        if place.left == run.horizon:
            place.adjoints = sweep.first_adjoints(place.state, validation)
        sweep.come_back(place)
    return finished_run(run, validation, place.total.tolist())


def _detached(state: InnerState) -> InnerState:
    parts, spec = tree_flatten((state.weights, state.optimizer, state.buffers))
    weights, optimizer, buffers = tree_unflatten([part.detach() for part in parts], spec)
    return replace(state, weights=weights, optimizer=optimizer, buffers=buffers)
