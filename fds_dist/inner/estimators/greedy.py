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

from fds_dist.common.batch import checked_batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import Estimate, Estimator, lost_run, validate
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerState, Keeper, OnStep, SplitPoint, Tangents, initial_state, zero_tangents
from fds_dist.schedule.buckets import segments
from fds_dist.tangents import Batch, Network, Update, differentiate, tangent_step
from fds_dist.tasks.base import validation_loss


def greedy_estimator(discount: float) -> Estimator:
    """The estimator with γ = `discount` in [0, 1]."""
    return partial(estimate_greedy, discount=discount)


def estimate_greedy(
    problem: Problem,
    values: Sequence[float],
    outer_step: int,
    horizon: int,
    ranks: Ranks,
    on_step: OnStep,
    keeper: Keeper | None = None,
    discount: float = 0.0,
) -> Estimate:
    """See `Estimator`; each rank of the `tangent` axis takes some of the hyperparameters."""
    space = problem.space
    mine = list(range(len(space.learned)))[ranks.tangent_rank :: ranks.shape.tangent]
    network = problem.network(outer_step)
    axis = ranks.data
    state = initial_state(problem, network, axis)
    tangents = zero_tangents(state, mine, axis)
    width = len(state.weights)
    own = axis.columns(width)
    update = problem.update(network, own)
    directions = _directions(problem, mine)
    total = torch.zeros(space.size, dtype=torch.float64, device=problem.device)
    loss, batches = problem.training_loss(network), problem.batches(outer_step)
    val_batches = _endless_validation(problem, outer_step)
    offsets = _first_elements(problem)
    for segment in segments(space.bucket_counts, horizon):
        h = problem.values_in(segment, values)
        buckets = [segment.buckets[space.learned[index].name] for index in mine]
        elements = [offsets[index] + bucket for index, bucket in zip(mine, buckets, strict=True)]
        _restart(tangents, elements)
        for step in range(segment.start, segment.stop):
            (part, network.share), seed = axis.split(next(batches)), problem.step_seed(outer_step, step, axis.rank)
            batch, vectorize = network.cast(part), problem.chunk_size > 1
            local = problem.make_point(loss, state.weights, problem.theta(h), batch, seed, vectorize)
            point = SplitPoint(local, axis, width)
            here = InnerState(step, state.weights[own], state.optimizer)
            _advance(problem, point, update, here, h, tangents, directions, discount)
            weights, optimizer = update(here.weights, here.optimizer, point.gradient, h)
            network.update_statistics(point.statistics)
            state = InnerState(step + 1, axis.gather(weights, width), optimizer)
            gradient = _validation_gradient(problem, network, state.weights, next(val_batches), axis).double()
            for element, row in zip(elements, tangents.weights, strict=True):
                total[element] += (row.double() * gradient).sum()
            if not on_step(state, point.loss):
                break
        if state.step < segment.stop:
            break
    validation = validate(problem, network, state.weights, outer_step, axis)
    if state.step < horizon:
        return lost_run(problem, validation)
    owned = [_elements_of(problem, offsets, rank, ranks.shape.tangent) for rank in range(ranks.shape.tangent)]
    local = total[owned[ranks.tangent_rank]].tolist()
    return Estimate(ranks.gather_elements(local, owned), validation.loss, validation.accuracy)


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


def _advance(
    problem: Problem,
    point: SplitPoint,
    update: Update,
    here: InnerState,
    h: Tensor,
    tangents: Tangents,
    dh: Tensor,
    discount: float,
) -> None:
    """One forgetful tangent step of all rows; without memory no Hessian-vector product is needed."""
    if not len(dh):
        return
    dw = tangents.weights * discount
    ds = tree_map(lambda tensor: tensor * discount, tangents.optimizer)
    dtheta = problem.theta(dh)
    needs_products = discount > 0 or dtheta.shape[-1] > 0
    dg = point.products(dw, dtheta) if needs_products else torch.zeros_like(dw)
    if problem.tangents.clip_hvp is not None:
        dg = dg.clamp(-problem.tangents.clip_hvp, problem.tangents.clip_hvp)
    primals = (here.weights, here.optimizer, point.gradient, h)
    vectorize = problem.chunk_size > 1
    tangents.weights, tangents.optimizer = tangent_step(update, primals, (dw, ds, dg, dh), vectorize)


def _endless_validation(problem: Problem, outer_step: int) -> Iterator[Batch]:
    """Validation batches, over and over.

    Raises:
        UserError: there are none.
    """
    found = True
    while found:
        found = False
        for batch in problem.task.val_batches(outer_step):
            found = True
            yield checked_batch(batch, "val_batches")
    raise UserError(Fault("task.val_batches", f"val_batches(outer_step={outer_step}) gave no batch", "at least one"))


def _validation_gradient(problem: Problem, network: Network, weights: Tensor, batch: Batch, axis: DataAxis) -> Tensor:
    """This rank's columns [S] of ∇L_val of one batch; leaves the network in training mode."""
    network.evaluate(problem.val_batch_norm)
    part, network.share = axis.split(batch)
    inputs, targets = network.cast(part)
    leaf = weights.detach().requires_grad_()
    output, _ = network(leaf, inputs)
    loss = validation_loss(problem.task)(output, targets) * network.share.fraction
    (gradient,) = differentiate(loss, leaf)
    network.train()
    return axis.reduce(gradient)
