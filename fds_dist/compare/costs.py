"""What one outer step costs, in plain training steps: the one place where gradient methods are charged.

A plain step (forward, backward, update) costs 1, and a black box's trial therefore its horizon. The charge is for the
work of all ranks together, each piece once: it does not depend on how many ranks share it. Validation is free for all.
"""

from __future__ import annotations

from fds_dist.cost import REVERSE_COST
from fds_dist.distributed.plan import PLAIN_STEP_COST, TANGENT_STEP_COST
from fds_dist.engine.problem import Problem
from fds_dist.schedule import bucket_window


def tangent_steps(problem: Problem, horizon: int) -> int:
    """Tangent updates over a horizon, all elements of λ together: those that are live and not pruned.

    In the window of its bucket b, a hyperparameter has b + 1 live tangents: those of buckets 0 to b.
    """
    pruning = problem.tangents.pruning
    total = 0
    for owner in problem.space.learned:
        for bucket in range(owner.buckets):
            window = len(bucket_window(bucket, owner.buckets, horizon))
            kept = sum(pruning.keeps(offset, window) for offset in range(window)) if pruning.ratio else window
            total += kept * (bucket + 1)
    return total


def forward_cost(problem: Problem, horizon: int) -> float:
    """1 + 2k per step with k live tangents: an exact Hessian-vector product costs two plain steps."""
    return PLAIN_STEP_COST * horizon + TANGENT_STEP_COST * tangent_steps(problem, horizon)


def reverse_cost(problem: Problem, horizon: int) -> float:
    """The same for every number of hyperparameters."""
    return REVERSE_COST * horizon


def greedy_cost(problem: Problem, horizon: int, discount: float) -> float:
    """Per step a plain step and a validation gradient, charged as another; and where a product is needed, that is with
    memory or with hyperparameters of the loss, two plain steps per hyperparameter (not per bucket)."""
    needs_products = discount > 0 or problem.loss_hyperparameters
    products = TANGENT_STEP_COST * len(problem.space.learned) if needs_products else 0.0
    return horizon * (2 * PLAIN_STEP_COST + products)


def estimator_cost(name: str, problem: Problem, horizon: int, discount: float = 0.0) -> float:
    """One outer step with the estimator `name` over `horizon` inner steps, in plain training steps.

    Args:
        discount: what the estimator `greedy` remembers from step to step.
    """
    if name == "greedy":
        return greedy_cost(problem, horizon, discount)
    return {"forward": forward_cost, "reverse": reverse_cost}[name](problem, horizon)
