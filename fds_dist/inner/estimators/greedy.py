"""Greedy hypergradients: hypergradient descent, RTHO and MARTHE as one family, which looks no further than a step.

After every inner step the validation loss of one batch is differentiated by the buckets in use, through tangents that
forget:

    Z ← γ·(∂U/∂w)·Z + ∂U/∂h,    hypergradient_k = Σ_{t in window k} ∇L_val(w_{t+1}) · Z_{t+1}

γ = 0 is hypergradient descent (Baydin et al., 2018), γ = 1 RTHO (Franceschi et al., 2017), between them MARTHE (Donini
et al., 2020). Tangents start anew with each bucket; of the shape `linear`, two knots are in use at a time. The
published methods move the hyperparameters during the run; here the outer optimizer moves them between runs, so that
only the hypergradients differ from the other estimators'.

Where an average of the weights is judged, L_val is that of the average, and Z in the product its tangent.

Cost per step: a plain step, a validation gradient and, for γ > 0, two plain steps per number of each bucket in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.faults import Fault, UserError
from fds_dist.inner.advance import Steps
from fds_dist.inner.checkpoint_files import Target, empty_like, state_targets, tangent_targets, tensors_to_write
from fds_dist.inner.directions import Directions, along_elements
from fds_dist.inner.estimate import Estimate, Estimator, evaluate, finished_run, lost_run, validate
from fds_dist.inner.estimators.forward import tangents_of_judged
from fds_dist.inner.horizon import zero_tangents
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState, Tangents
from fds_dist.inner.training import Training
from fds_dist.schedule.buckets import Segment
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents import Batch


def greedy_estimator(discount: float) -> Estimator:
    """The estimator with γ = `discount` in [0, 1]."""
    return partial(estimate_greedy, discount=discount)


def estimate_greedy(run: InnerRun, discount: float = 0.0) -> Estimate:
    """See `Estimator`; each rank of the `tangent` axis takes some numbers of the hyperparameters."""
    problem, ranks, greedy = run.problem, run.ranks, GreedyRun(run, discount)
    training = greedy.training
    with run.checkpointer or nullcontext():
        greedy.restore()
        greedy.train()
    validation = validate(problem, training.network, training.judged_state, run.number, ranks.data, with_gradient=False)
    if training.state.step < run.horizon:
        return lost_run(run, validation, training.state.step)
    totals = greedy.total.tolist()
    local = [totals[element] for element in greedy.owned[ranks.tangent_rank]]
    return finished_run(run, validation, ranks.gather_elements(local, greedy.owned))


class GreedyRun:
    """An inner run, the tangents of what is in use of this rank's elements of λ, and the sums of their products."""

    def __init__(self, run: InnerRun, discount: float) -> None:
        self.run, self.problem, self.training = run, run.problem, Training(run)
        self.steps = Steps(self.training, discount)
        space, places = self.problem.space, run.ranks.shape.tangent
        self.owned = [_elements_of(space, rank, places) for rank in range(places)]
        self.tangents = zero_tangents(self.training.local_state, (), live=())
        self.total = torch.zeros(space.size, dtype=torch.float64, device=self.problem.device)
        """[K] this rank's summand of the hypergradients; 0 for elements of other ranks."""

    def train(self) -> None:
        """Takes the steps that are left of the horizon; ends early where `on_step` says so."""
        run, problem, training = self.run, self.problem, self.training
        val_batches = islice(_endless_validation(problem, run.number), training.state.step, None)
        for segment in run.segments():
            if segment.stop <= training.state.step:
                continue
            self.tangents = _carried(self.tangents, training.local_state, self._in_use(segment))
            directions = Directions(problem, segment, run.horizon, along_elements(self.tangents.elements))
            rows = range(len(self.tangents.elements))
            for step in range(max(segment.start, training.state.step), segment.stop):
                loss = self.steps.take(run.hyperparameters[segment.row(step)], self.tangents, directions.at(step), rows)
                self._add(_validation_gradient(training, next(val_batches)).double())
                if not run.on_step(training.state, loss):
                    return
                self._keep()

    def _in_use(self, segment: Segment) -> list[int]:
        """This rank's elements that are read on `segment`."""
        return _elements_in_use(self.problem.space, segment, self.owned[self.run.ranks.tangent_rank])

    def _add(self, gradient: Tensor) -> None:
        """Adds ∇L_val · Z after a step, from this rank's columns of the gradient [S]."""
        if not self.tangents.elements:
            return
        rows = tangents_of_judged(self.training, self.tangents)
        for element, row in zip(self.tangents.elements, rows, strict=True):
            self.total[element] += (row.double() * gradient).sum()

    def restore(self) -> None:
        """Goes to where the checkpointer kept the run, if it did."""
        if self.run.checkpointer is None:
            return
        state = self.training.state

        def plan(step: int) -> tuple[tuple[InnerState, Tangents, Tensor], list[Target]]:
            last = next(segment for segment in self.run.segments() if step <= segment.stop)
            tangents = zero_tangents(self.training.local_state, self._in_use(last), live=())
            filled, total = empty_like(state, step), torch.zeros_like(self.total)
            return (filled, tangents, total), [
                *state_targets(filled),
                *tangent_targets(tangents),
                *self._sums(total),
            ]

        restored = self.run.checkpointer.restore_planned(len(state.weights), plan)
        if restored is not None:
            self.training.state, self.tangents, self.total = restored

    def _keep(self) -> None:
        if self.run.checkpointer is None:
            return
        state, tangents = self.training.state, self.tangents

        def tensors() -> Mapping[str, Tensor]:
            sums = {target.name: target.tensor for target in self._sums(self.total.cpu())}
            return tensors_to_write(self.run.ranks, state, tangents) | sums

        self.run.checkpointer.keep_tensors(state.step, len(state.weights), tensors, tangents.elements)

    def _sums(self, total: Tensor) -> list[Target]:
        """Each number of `total` [K] that this rank owns; ranks of the `data` axis have summands of it."""
        ranks = self.run.ranks
        part = f"part-{ranks.data.rank}-of-{ranks.data.size}"
        return [Target(total[element], f"total.{element}.{part}") for element in self.owned[ranks.tangent_rank]]


def tangents_at_once(space: HyperparameterSpace, horizon: int) -> int:
    """The most tangents that there are at a time, of all ranks together."""
    return max(
        sum(owner.size * len(segment.readings[owner.name]) for owner in space.learned)
        for segment in space.segments(horizon)
    )


def _elements_of(space: HyperparameterSpace, rank: int, ranks: int) -> list[int]:
    """The elements of λ that belong to the numbers of hyperparameters that `rank` takes, every `ranks`-th of all."""
    numbers = [(owner.name, entry) for owner in space.learned for entry in range(owner.size)]
    mine = set(numbers[rank::ranks])
    return [element for element, slot in enumerate(space.elements) if (slot.owner.name, slot.entry) in mine]


def _elements_in_use(space: HyperparameterSpace, segment: Segment, elements: Sequence[int]) -> list[int]:
    """Those of `elements` that are read on `segment`."""
    buckets = {name: {reading.bucket for reading in readings} for name, readings in segment.readings.items()}
    slots = [(element, space.elements[element]) for element in elements]
    return [element for element, slot in slots if slot.bucket in buckets[slot.owner.name]]


def _carried(tangents: Tangents, local: InnerState, elements: Sequence[int]) -> Tangents:
    """The tangents of `elements`: those that there are, and zeros for an element that was not in use before."""
    if tangents.elements == tuple(elements):
        return tangents
    carried = zero_tangents(local, elements, live=())
    rows = {element: row for row, element in enumerate(tangents.elements)}
    into, of = (carried.weights, carried.optimizer), (tangents.weights, tangents.optimizer)
    for new, element in enumerate(elements):
        if (old := rows.get(element)) is not None:  # row by row: a list of them would be sent to the device
            tree_map(lambda tensor, before, new=new, old=old: tensor[new].copy_(before[old]), into, of)
    return carried


def _endless_validation(problem: Problem, number: int) -> Iterator[Batch]:
    """Validation batches, over and over.

    Raises:
        UserError: there are none.
    """
    any_batch = True
    while any_batch:
        any_batch = False
        for batch in problem.batches_of("val_batches", number):
            any_batch = True
            yield batch
    raise UserError(Fault("task.val_batches", f"val_batches(outer_step={number}) gave no batch", "at least one"))


def _validation_gradient(training: Training, batch: Batch) -> Tensor:
    """This rank's columns [S] of ∇L_val of one batch; leaves the network in training mode."""
    problem, network, axis = training.problem, training.network, training.axis
    evaluation = evaluate(
        problem, network, training.judged_state, [batch], problem.val_batch_norm, axis, with_gradient=True
    )
    network.train()
    assert evaluation is not None and evaluation.gradient is not None
    return axis.reduce(evaluation.gradient)
