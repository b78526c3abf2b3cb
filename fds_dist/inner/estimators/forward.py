"""Forward-mode differentiation with sharing (FDS): exact, in memory that does not grow with the horizon.

    hypergradient_k = ∇L_val(w_T) · Z_k

Each rank of the `tangent` axis carries the tangents Z_k that it owns through the same primal run. Live buffers count
like weights: they have a gradient and tangents too. Where an average of the weights is judged, ∇L_val is at the
average, and Z_k is that of the average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fds_dist.inner.estimate import Estimate, Evaluation, finished_run, lost_run, validate
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plan import make_plan
from fds_dist.inner.run import InnerRun, Tangents
from fds_dist.inner.training import Training
from fds_dist.tangents.step import judged_tangents


def estimate_forward(run: InnerRun) -> Estimate:
    """See `Estimator`."""
    ranks = run.ranks
    plan = make_plan(run.problem.space.starts(run.horizon), run.horizon, ranks.shape.tangent)
    training, tangents = run_horizon(run, plan.owned[ranks.tangent_rank])
    validation = validate(run.problem, training.network, training.judged_state, run.number, ranks.data)
    if training.state.step < run.horizon:
        return lost_run(run, validation, training.state.step)
    local = directional_derivatives(validation, training, tangents)
    return finished_run(run, validation, ranks.gather_elements(local, plan.owned))


def directional_derivatives(validation: Evaluation, training: Training, tangents: Tangents) -> list[float]:
    """This rank's part of ∇L_val · Z_k for its R tangents; the parts of the `data` axis add up to it.

    One row at a time in float64: a matrix product's last bits would depend on how many rows this rank owns.
    """
    assert validation.gradient is not None
    gradient = training.axis.reduce(validation.gradient)
    if not tangents.elements:
        return []
    products = _row_products(gradient, tangents_of_judged(training, tangents))
    for name, rows in tangents.buffers.items():
        products = products + _row_products(validation.buffer_gradients[name], rows)
    return products.tolist()


def tangents_of_judged(training: Training, tangents: Tangents) -> Tensor:
    """[R, S] of what is validated in place of the weights."""
    here, vectorize = training.local_state, training.problem.chunk_size > 1
    rule = training.problem.rule(training.network.layout)
    carried = tangents.weights, tangents.optimizer
    return judged_tangents(rule, (here.weights, here.optimizer), carried, vectorize)


def _row_products(gradient: Tensor, rows: Tensor) -> Tensor:
    gradient = gradient.double()
    return torch.stack([(row.double() * gradient).sum() for row in rows])
