"""What the witness says of a problem: compared in float64 where that can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from fds_dist.inner.estimate import Estimator
from fds_dist.inner.problem import Problem
from fds_dist.inner.single_precision import float64_inside
from fds_dist.inner.tolerance import EXACT_UP_TO, STEPS, Testimony
from fds_dist.inner.witness import Witness


def testimony(problem: Problem, estimator_name: str, estimator: Estimator, steps: int) -> Testimony:
    """Compares `problem` with plain PyTorch: in float64 where the user's code and the memory allow, else in its dtype.

    Raises:
        UserError: something differs; names the likely cause.
    """
    with raised_to_float64(problem) as (coarse, exact):
        compared = problem.in_float64() if exact else replace(problem.traced(), low=None)
        witness = Witness(compared, min(STEPS, steps), exact)
        error = witness.compare_steps()
        seen = Testimony(compared.dtype, error, coarse=coarse)
        differentiated = error is not None and estimator_name != "greedy"
        if differentiated:
            products = witness.compare_products() if estimator_name != "reverse" else None
            seen = replace(seen, products=products, hypergradient=witness.compare_hypergradient(estimator))
        if problem.low is not None:
            under_autocast = Witness(problem, min(STEPS, steps))
            low_error = under_autocast.compare_steps()
            low_product = under_autocast.compare_low_product(witness) if seen.products is not None else None
            seen = replace(seen, low=(low_error, low_product))
        return seen


def untouched_parameters(problem: Problem, steps: int) -> tuple[str, ...]:
    """Names of the parameters that take no part in the first steps of plain training; none if that would be all."""
    witness = Witness(problem, min(STEPS, steps))
    run = witness.plain.run(witness.values)
    return run.untouched if len(run.untouched) < len(run.weights) else ()


@contextmanager
def raised_to_float64(problem: Problem, up_to: float = EXACT_UP_TO) -> Iterator[tuple[str, bool]]:
    """See `float64_inside`, of network and loss in float64; left as they are above `up_to` weights."""
    if problem.network(0).layout.size > up_to:
        yield "", problem.dtype == torch.float64
        return
    plain = Witness(problem.in_float64(), 1).brief
    module = plain.module()
    with float64_inside(lambda: plain.loss(module, plain.train[0], plain.theta(), seed=0)) as inside:
        yield inside
