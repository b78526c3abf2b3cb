"""The estimator that a config names, the dry run with it, and whether reverse mode can take its place."""

from __future__ import annotations

from dataclasses import dataclass

from fds_dist.common.faults import UserError
from fds_dist.common.memory import free_bytes
from fds_dist.config import Config
from fds_dist.config.schema import config_contradictions
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner.choice import may_pay
from fds_dist.inner.compile_choice import with_compile
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.estimators import ESTIMATORS, Estimator
from fds_dist.inner.estimators.greedy import greedy_estimator, tangents_at_once
from fds_dist.inner.estimators.random_directions import random_directions
from fds_dist.inner.problem import Problem
from fds_dist.outer.progress import OuterSettings

AUTO = "auto"


@dataclass(frozen=True)
class ReverseTrial:
    """What `estimator: auto` has learned of reverse mode before the ranks speak."""

    obstacle: str = ""
    """Why this run cannot have it; "" where it can."""
    remarks: tuple[str, ...] = ()
    """What a person should know if it is taken."""


def first_estimator(config: Config) -> str:
    """The name of the estimator until `auto` is settled."""
    return "forward" if config.estimator == AUTO else config.estimator


def estimator_of(config: Config) -> Estimator:
    """The estimator that the config names."""
    if config.estimator == "random_directions":
        return random_directions(config.random_directions.count)
    if config.estimator == "greedy":
        return greedy_estimator(config.greedy.discount)
    return ESTIMATORS[first_estimator(config)]


def tried(
    untried: Problem, config: Config, settings: OuterSettings, shape: MeshShape, environment: LaunchEnvironment
) -> tuple[Problem, tuple[str, ...], ReverseTrial | None]:
    """The problem after its dry run, remarks on it, and for `estimator: auto` what was learned of reverse mode.

    Raises:
        UserError: see `dry_run`.
    """
    plain_steps = min(settings.horizons) if config.consistency.witness == "on" else 0
    asked, way = with_way(untried, config, settings, shape)
    problem, remarks = dry_run(asked, config.tangents.method, first_estimator(config), plain_steps)
    if problem.tangents.compile == asked.tangents.compile and way:
        remarks += (way,)
    if not plain_steps:
        remarks += ("consistency.witness is off: this run was not checked against plain PyTorch",)
    if config.estimator != AUTO:
        return problem, remarks, None
    return problem, remarks, tried_reverse(untried, problem, config, settings, shape, environment, plain_steps)


def with_way(problem: Problem, config: Config, settings: OuterSettings, shape: MeshShape) -> tuple[Problem, str]:
    """The problem with its way to take steps, and a remark on it; see `with_compile`."""
    horizon = max(settings.horizons)
    starts = problem.space.starts(horizon)
    if config.estimator == "random_directions":  # which all live from the first step on
        starts = [0] * min(config.random_directions.count, len(starts))
    elif config.estimator == "greedy":  # as many at any time
        starts = [0] * tangents_at_once(problem.space, horizon)
    return with_compile(problem, config.tangents.compile, settings.horizons, starts, shape.data)


def tried_reverse(
    untried: Problem,
    problem: Problem,
    config: Config,
    settings: OuterSettings,
    shape: MeshShape,
    environment: LaunchEnvironment,
    plain_steps: int,
) -> ReverseTrial:
    """Whether reverse mode can take the place of forward mode.

    Its dry run is made only where it may pay.

    Args:
        untried: the problem before its dry run.
        problem: the problem after the dry run by forward mode.
        plain_steps: see `dry_run`.
    """
    for contradiction in config_contradictions(config.model_copy(update={"estimator": "reverse"})):
        return ReverseTrial(f"{'.'.join(contradiction.path)}={contradiction.problem}")
    if problem.tangents.method == "difference":
        return ReverseTrial("reverse mode needs second derivatives, and products are differences of gradients here")
    if not may_pay(problem, settings.horizons, shape, free_bytes(problem.device, environment.local_world_size)):
        return ReverseTrial()
    try:
        return ReverseTrial(remarks=dry_run(untried, config.tangents.method, "reverse", plain_steps)[1])
    except UserError as error:
        return ReverseTrial(error.faults[0].problem)
