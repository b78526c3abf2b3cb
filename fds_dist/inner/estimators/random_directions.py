"""Unbiased hypergradients from few tangents, for more learned numbers than tangents can be afforded.

R random directions q_r of λ, orthonormal in units of each element's step s_k, get a tangent each, the elements none:

    hypergradient_k = K/R · Σ_r (∇L_val(w_T) · Z_r) · q_rk / s_k,    Z_r = dw_T/dλ · (s ∘ q_r)

E[Σ_r q_r q_rᵀ] = R/K · 1, so that the mean over the directions is the hypergradient. In these units its error has on
average √(K/R − 1) times the length of the hypergradient, and R = K is exact. This is the forward gradient of (FG)²U
(Shen et al., 2024, arXiv 2406.14095), with directions that are orthogonal within an outer step: independent ones would
have an error of √((K + 1)/R). Each outer step, and each replica, draws directions of its own.

Shapes: D = weights, K = learned numbers, R = directions. Cost: 1 + 2R plain steps per step, in memory that does not
grow with the horizon.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fds_dist.common.randomness import generator
from fds_dist.common.transfer import to_device
from fds_dist.inner.directions import along_mixtures
from fds_dist.inner.estimate import Estimate, Estimator, finished_run, lost_run, validate
from fds_dist.inner.estimators.forward import directional_derivatives
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plan import make_plan
from fds_dist.inner.run import InnerRun


def random_directions(count: int) -> Estimator:
    """The estimator with R = `count` directions, at most K."""
    return partial(estimate_by_directions, count=count)


def estimate_by_directions(run: InnerRun, count: int | None = None) -> Estimate:
    """See `Estimator`; each rank of the `tangent` axis takes some of the directions. None: as many as elements."""
    size, ranks = run.problem.space.size, run.ranks
    count = size if count is None else min(count, size)
    basis, units = orthonormal_rows(run, count), element_units(run)
    plan = make_plan([0] * count, run.horizon, ranks.shape.tangent)
    mine = plan.owned[ranks.tangent_rank]
    mixture = to_device((basis * units)[list(mine)], run.problem.device, run.problem.dtype)
    training, tangents = run_horizon(run, mine, along_mixtures(mixture))
    validation = validate(run.problem, training.network, training.judged_state, run.number, ranks.data)
    if training.state.step < run.horizon:
        return lost_run(run, validation, training.state.step)
    along = ranks.gather_elements(directional_derivatives(validation, training, tangents), plan.owned)
    slopes = torch.tensor(along, dtype=torch.float64)
    return finished_run(run, validation, (size / count * (slopes @ basis) / units).tolist())


def orthonormal_rows(run: InnerRun, count: int) -> Tensor:
    """R = `count` orthonormal rows [R, K] of a random rotation (Haar measure) in float64, the same on every rank."""
    random = generator(run.problem.seed, run.number, "directions")
    gaussian = torch.randn(run.problem.space.size, count, generator=random, dtype=torch.float64)
    columns, triangle = torch.linalg.qr(gaussian)
    return (columns * triangle.diagonal().sign()).mT  # the signs make QR unique, and its Q uniform


def element_units(run: InnerRun) -> Tensor:
    """[K] the first step of each element, as a change of its value."""
    elements = zip(run.problem.space.elements, run.values, strict=True)
    units = [slot.owner.step * (abs(slot.owner.scale_slope(value)) or 1.0) for slot, value in elements]
    return torch.tensor(units, dtype=torch.float64)
