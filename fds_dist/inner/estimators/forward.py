"""Forward-mode differentiation with sharing (FDS): exact, in memory that does not grow with the horizon.

    hypergradient_k = ∇L_val(w_T) · Z_k

Each rank of the `tangent` axis carries the tangents Z_k that it owns through the same primal run. Live buffers count
like weights: they have a gradient and tangents too. Where the weights are averaged, ∇L_val is at their average, and Z_k
is that of the average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.inner.estimate import Estimate, Evaluation, finished_run, lost_run, validate
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plan import make_plan
from fds_dist.inner.run import InnerRun, Tangents
from fds_dist.tangents.averaging import judged


def estimate_forward(run: InnerRun) -> Estimate:
    """See `Estimator`."""
    ranks = run.ranks
    plan = make_plan(run.problem.space.starts(run.horizon), run.horizon, ranks.shape.tangent)
    training, tangents = run_horizon(run, plan.owned[ranks.tangent_rank])
    validation = validate(run.problem, training.network, training.whole_state, run.number, ranks.data)
    if training.state.step < run.horizon:
        return lost_run(run, validation, training.state.step)
    local = directional_derivatives(validation, tangents, ranks.data)
    return finished_run(run, validation, ranks.gather_elements(local, plan.owned))


def directional_derivatives(validation: Evaluation, tangents: Tangents, axis: DataAxis) -> list[float]:
    """This rank's part of ∇L_val · Z_k for its R tangents; the parts of the `data` axis add up to it.

    One row at a time in float64: a matrix product's last bits would depend on how many rows this rank owns.
    """
    assert validation.gradient is not None
    gradient = axis.reduce(validation.gradient)
    if not tangents.elements:
        return []
    products = _row_products(gradient, judged(tangents.weights, tangents.optimizer))
    for name, rows in tangents.buffers.items():
        products = products + _row_products(validation.buffer_gradients[name], rows)
    return products.tolist()


def _row_products(gradient: Tensor, rows: Tensor) -> Tensor:
    gradient = gradient.double()
    return torch.stack([(row.double() * gradient).sum() for row in rows])
