"""Forward-mode differentiation with sharing (FDS): exact, in memory that does not grow with the horizon.

    hypergradient_k = ∇L_val(w_T) · Z_k

Each rank of the `tangent` axis carries the tangents Z_k that it owns through the same primal run.
"""

from __future__ import annotations

from collections.abc import Sequence

from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import Estimate, lost_run, validate
from fds_dist.inner.plan import make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import Keeper, OnStep, run_horizon


def estimate_forward(
    problem: Problem,
    values: Sequence[float],
    outer_step: int,
    horizon: int,
    ranks: Ranks,
    on_step: OnStep,
    keeper: Keeper | None = None,
) -> Estimate:
    """See `Estimator`."""
    plan = make_plan(problem.space.starts(horizon), horizon, ranks.shape.tangent)
    owned = plan.owned[ranks.tangent_rank]
    network = problem.network(outer_step)
    state, tangents = run_horizon(problem, network, values, outer_step, horizon, owned, on_step, ranks.data, keeper)
    validation = validate(problem, network, state.weights, outer_step, ranks.data)
    if state.step < horizon:
        return lost_run(problem, validation)
    # One row at a time in float64: a matrix product's last bits would depend on how many rows this rank owns.
    gradient = ranks.data.reduce(validation.gradient).double()
    local = [(row.double() * gradient).sum().item() for row in tangents.weights]
    return Estimate(ranks.gather_elements(local, plan.owned), validation.loss, validation.accuracy)
