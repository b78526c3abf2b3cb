"""What a search still has to compute, from which the time left is told."""

from __future__ import annotations

from itertools import pairwise

from fds_dist.build import Build
from fds_dist.inner import rehearsal
from fds_dist.inner.plan import (
    PLAIN_STEP_COST,
    REPLAY_COST,
    REVERSE_COST,
    TANGENT_STEP_COST,
    estimator_cost,
    make_plan,
    reverse_cost,
)
from fds_dist.tracking.records import OuterWork, Stage

WORTH = 50
"""The way back of reverse mode is timed beforehand where the search takes so many times as long as that."""


def outer_work(built: Build) -> tuple[OuterWork, ...]:
    """Of each outer step, on the rank for which all others wait."""
    horizons = built.settings.horizons
    back = _way_back(built) if built.config.estimator == "reverse" else 0.0
    works = {horizon: _work(built, horizon, back) for horizon in set(horizons)}
    return tuple(works[horizon] for horizon in horizons)


def judging_steps(built: Build, world_size: int) -> float:
    """Plain steps of a rank that judges the result: of all candidates there may be, over the longest horizon."""
    outer, teams = built.config.outer, world_size // built.shape.data
    runs = outer.judge_seeds * (4 if outer.average > 1 else 3)
    return float(-(-runs // teams) * max(built.settings.horizons))


def _way_back(built: Build) -> float:
    """Plain steps per step of reverse mode on its way back: timed, or counted where that is not worth the time."""
    steps = sum(reverse_cost(built.problem, horizon) for horizon in built.settings.horizons)
    is_eager_and_whole = built.problem.tangents.compile == "off" and built.shape.data == 1
    if not is_eager_and_whole or steps < WORTH * rehearsal.PLAIN_STEPS:
        return REVERSE_COST - PLAIN_STEP_COST
    return rehearsal.cost_of_way_back(built.problem)


def _work(built: Build, horizon: int, back: float) -> OuterWork:
    config, problem = built.config, built.problem
    if config.estimator == "forward":
        return OuterWork(_stages(built, horizon))
    cost = estimator_cost(config.estimator, problem, horizon, config.greedy.discount, config.random_directions.count)
    if config.estimator == "reverse":
        replayed = 0.0 if problem.keeps_every_state(horizon) else REPLAY_COST
        return OuterWork((Stage(horizon, 0.0),), after=horizon * (back + replayed))
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
