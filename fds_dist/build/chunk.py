"""How many tangents the ranks of a run take at once: the least that any of them has memory for.

Ranks of one inner run must take equally many, or a batched product would have other last bits on each.
"""

from __future__ import annotations

from dataclasses import replace

from fds_dist.build.estimators import first_estimator
from fds_dist.build.run import Build
from fds_dist.common.memory import free_bytes
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.chunk_trial import in_chunks, size_that_fits, size_with_memory
from fds_dist.inner.estimators.greedy import tangents_at_once
from fds_dist.inner.plan import make_plan


def with_chunk(built: Build, ranks: Ranks) -> Build:
    """The run with chunks that fit into memory; with a remark where they are smaller than asked for.

    Compiled steps have chunks of their own, tried when they are made (`CompiledCalls`).

    Args:
        ranks: those of the run, which all call this alike; not entered, they are this process alone.
    """
    problem, tangents = built.problem, most_tangents(built)
    asked = min(problem.chunk_size, tangents)
    if asked < 2 or problem.tangents.compile != "off":
        return built
    size, parts = asked, built.shape.data
    if problem.tangents.chunk_size is None:
        free = free_bytes(problem.device, ranks.environment.local_world_size)
        size = size_that_fits(problem, asked, tangents, parts, free)
    told = ranks.gather_objects(size_with_memory(problem, size, tangents, parts))
    agreed = min(size for size, _ in told)
    if agreed == asked:
        return built
    lacking = next((f"rank {rank} is {lack} with more" for rank, (_, lack) in enumerate(told) if lack), "")
    reason = lacking or "more do not fit into free memory"
    remark = f"tangents are taken {agreed} at a time, not {asked}: {reason}"
    return replace(built, problem=in_chunks(problem, agreed), remarks=(*built.remarks, remark))


def most_tangents(built: Build) -> int:
    """The most tangents that a rank has at a time."""
    config, space, horizon = built.config, built.problem.space, max(built.settings.horizons)
    name, places = first_estimator(config), built.shape.tangent
    if name == "reverse":
        return 0
    if name == "greedy":
        return tangents_at_once(space, horizon)
    starts = space.starts(horizon)
    if name == "random_directions":
        starts = [0] * min(config.random_directions.count, len(starts))
    return max(map(len, make_plan(starts, horizon, places).owned))
