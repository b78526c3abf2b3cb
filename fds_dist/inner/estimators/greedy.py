"""Greedy hypergradients: hypergradient descent, RTHO and MARTHE as one family, which looks no further than a step.

After every inner step the validation loss of one batch is differentiated by the buckets in use, through tangents that
forget:

    Z ← γ·(∂U/∂w)·Z + ∂U/∂h,    hypergradient_k = Σ_{t in window k} ∇L_val(w_{t+1}) · Z_{t+1}

γ = 0 is hypergradient descent (Baydin et al., 2018), γ = 1 RTHO (Franceschi et al., 2017), between them MARTHE (Donini
et al., 2020). Tangents start anew with each bucket. The published methods move the hyperparameters during the run; here
the outer optimizer moves them between runs, so that only the hypergradients differ from the other estimators'.

Cost per step: a plain step, a validation gradient and, for γ > 0, two plain steps per hyperparameter (not per bucket).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.faults import Fault, UserError
from fds_dist.inner.estimate import Estimate, Estimator, evaluate, finished_run, lost_run, validate
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, Tangents, Training, zero_tangents
from fds_dist.tangents import Batch, Point, tangent_step


def greedy_estimator(discount: float) -> Estimator:
    """The estimator with γ = `discount` in [0, 1]."""
    return partial(estimate_greedy, discount=discount)


def estimate_greedy(run: InnerRun, discount: float = 0.0) -> Estimate:
    """See `Estimator`; each rank of the `tangent` axis takes some of the hyperparameters."""
    problem, ranks, training = run.problem, run.ranks, Training(run)
    mine = list(range(len(problem.space.learned)))[ranks.tangent_rank :: ranks.shape.tangent]
    tangents = zero_tangents(training.local_state, mine, live=())
    directions, offsets = _directions(problem, mine), _first_elements(problem)
    total = torch.zeros(problem.space.size, dtype=torch.float64, device=problem.device)
    val_batches = _endless_validation(problem, run.number)
    healthy = True
    for segment in run.segments():
        h = run.hyperparameters(segment)
        buckets = [segment.buckets[problem.space.learned[index].name] for index in mine]
        elements = [offsets[index] + bucket for index, bucket in zip(mine, buckets, strict=True)]
        _restart(tangents, elements)
        for _step in range(segment.start, segment.stop):
            point = training.point(problem.theta(h))
            _advance(training, point, h, tangents, directions, discount)
            training.step(point, h)
            gradient = _validation_gradient(training, next(val_batches)).double()
            for element, row in zip(elements, tangents.weights, strict=True):
                total[element] += (row.double() * gradient).sum()
            if not (healthy := run.on_step(training.state, point.loss)):
                break
        if not healthy:
            break
    validation = validate(problem, training.network, training.state, run.number, ranks.data, with_gradient=False)
    if training.state.step < run.horizon:
        return lost_run(run, validation, training.state.step)
    owned = [_elements_of(problem, offsets, rank, ranks.shape.tangent) for rank in range(ranks.shape.tangent)]
    local = total[owned[ranks.tangent_rank]].tolist()
    return finished_run(run, validation, ranks.gather_elements(local, owned))


def _first_elements(problem: Problem) -> list[int]:
    """For each learned hyperparameter the position of its first bucket in λ."""
    counts = [owner.buckets for owner in problem.space.learned]
    return [sum(counts[:index]) for index in range(len(counts))]


def _elements_of(problem: Problem, offsets: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The elements of λ that belong to the hyperparameters of `rank`."""
    learned = problem.space.learned
    return [offsets[i] + bucket for i in range(rank, len(learned), ranks) for bucket in range(learned[i].buckets)]


def _directions(problem: Problem, hyperparameters: Sequence[int]) -> Tensor:
    """dh [R, H]: row r is 1 at the column of its hyperparameter, whose bucket in use is always the one that counts."""
    names = problem.space.names
    directions = torch.zeros(len(hyperparameters), len(names), dtype=problem.dtype)
    for row, index in enumerate(hyperparameters):
        directions[row, names.index(problem.space.learned[index].name)] = 1.0
    return directions.to(problem.device)


def _restart(tangents: Tangents, elements: Sequence[int]) -> None:
    """Zeroes the tangents whose bucket has changed, and notes the elements that they now belong to."""
    for row, element in enumerate(elements):
        if tangents.elements[row] != element:
            tangents.weights[row] = 0
            tree_map(lambda tensor, row=row: tensor[row].zero_(), tangents.optimizer)
    tangents.elements = tuple(elements)


def _advance(training: Training, point: Point, h: Tensor, tangents: Tangents, dh: Tensor, discount: float) -> None:
    """One forgetful tangent step of all rows; without memory no Hessian-vector product is needed."""
    if not len(dh):
        return
    problem, here = training.problem, training.local_state
    dw = tangents.weights * discount
    ds = tree_map(lambda tensor: tensor * discount, tangents.optimizer)
    dtheta = problem.theta(dh)
    needs_products = discount > 0 or dtheta.shape[-1] > 0
    dg = point.products(dw, dtheta, {})[0] if needs_products else torch.zeros_like(dw)
    if problem.tangents.clip_hvp is not None:
        dg = dg.clamp(-problem.tangents.clip_hvp, problem.tangents.clip_hvp)
    primals = (here.weights, here.optimizer, point.gradient, h)
    vectorize = problem.chunk_size > 1
    tangents.weights, tangents.optimizer = tangent_step(training.update, primals, (dw, ds, dg, dh), vectorize)


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
    evaluation = evaluate(problem, network, training.state, [batch], problem.val_batch_norm, axis, with_gradient=True)
    network.train()
    assert evaluation is not None and evaluation.gradient is not None
    return axis.reduce(evaluation.gradient)
