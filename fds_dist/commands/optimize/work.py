"""What a search still has to compute, from which the time left is told."""

from __future__ import annotations

from itertools import pairwise

from fds_dist.build import Build
from fds_dist.inner.plan import TANGENT_STEP_COST, estimator_cost, make_plan
from fds_dist.tracking.records import OuterWork, Stage


def outer_work(built: Build) -> tuple[OuterWork, ...]:
    """Of each outer step, on the rank for which all others wait."""
    horizons = built.settings.horizons
    works = {horizon: _work(built, horizon) for horizon in set(horizons)}
    return tuple(works[horizon] for horizon in horizons)


def judging_steps(built: Build, world_size: int) -> float:
    """Plain steps of a rank that judges the result: of all candidates there may be, over the longest horizon."""
    outer, teams = built.config.outer, world_size // built.shape.data
    runs = outer.judge_seeds * (4 if outer.average > 1 else 3)
    return float(-(-runs // teams) * max(built.settings.horizons))


def _work(built: Build, horizon: int) -> OuterWork:
    config, problem = built.config, built.problem
    if config.estimator == "forward":
        return OuterWork(_stages(built, horizon))
    cost = estimator_cost(config.estimator, problem, horizon, config.greedy.discount, config.random_directions.count)
    if config.estimator == "reverse":
        return OuterWork((Stage(horizon, 0.0),), after=cost - horizon)
    return OuterWork((Stage(horizon, (cost / horizon - 1) / TANGENT_STEP_COST),))


def _stages(built: Build, horizon: int) -> tuple[Stage, ...]:
    """The stages of forward mode; with pruning the share of the tangents that a step updates in the mean."""
    starts = built.problem.space.starts(horizon)
    plan = make_plan(starts, horizon, built.shape.tangent)
    updated = 1.0 - built.problem.tangents.pruning.ratio
    return tuple(
        Stage(stop - start, updated * max(sum(starts[each] <= start for each in owned) for owned in plan.owned))
        for start, stop in pairwise(sorted({0, *starts, horizon}))
    )
