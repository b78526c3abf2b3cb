"""How many tangents the ranks of a run take at once: the least that any of them has memory for.

Ranks of one inner run must take equally many, or a batched product would have other last bits on each.
"""

from __future__ import annotations

from dataclasses import replace

from fds_dist.build.estimators import first_estimator
from fds_dist.build.run import Build
from fds_dist.common.memory import free_bytes
from fds_dist.common.words import percent
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.chunk_trial import COMPILED, in_chunks, size_that_fits, size_with_memory
from fds_dist.inner.estimators.greedy import tangents_at_once
from fds_dist.inner.plan import make_plan


def with_chunk(built: Build, ranks: Ranks) -> Build:
    """The run with chunks that fit into memory; with a remark where they are smaller than asked for.

    Compiled steps have chunks of their own. On a GPU these are tried when they are made (`CompiledCalls`); on a CPU,
    where nobody could say afterwards that memory was lacking, they are planned here. So are those of the eager steps
    that a compiled run falls back on.

    Args:
        ranks: those of the run, which all call this alike; not entered, they are this process alone.
    """
    tangents = most_tangents(built)
    if built.problem.tangents.compile != "off":
        built = with_compiled_chunk(built, ranks, tangents)
    return with_eager_chunk(built, ranks, tangents)


def with_eager_chunk(built: Build, ranks: Ranks, tangents: int) -> Build:
    """The same of the run's eager steps.

    Args:
        tangents: of this rank.
    """
    problem, parts = built.problem, built.shape.data
    asked = size = min(problem.chunk_size, tangents)
    if asked < 2:
        return built
    eager = replace(problem, tangents=replace(problem.tangents, compile="off"))
    if problem.tangents.chunk_size is None:
        free = free_bytes(problem.device, ranks.environment.local_world_size)
        size = size_that_fits(eager, asked, tangents, parts, free)
    told = ranks.gather_objects(size_with_memory(eager, size, tangents, parts))
    agreed = min(size for size, _ in told)
    if agreed == asked:
        return built
    lacking = next((f"rank {rank} is {lack} with more" for rank, (_, lack) in enumerate(told) if lack), "")
    reason = lacking or "more do not fit into free memory"
    where = "" if problem.tangents.compile == "off" else "in eager steps "
    remark = f"{where}tangents are taken {agreed} at a time, not {asked}: {reason}"
    return replace(built, problem=in_chunks(problem, agreed), remarks=(*built.remarks, remark))


def with_compiled_chunk(built: Build, ranks: Ranks, tangents: int) -> Build:
    """The same of a run whose steps are compiled; they are eager where that was not asked for, and two tangents at once
    take too much.

    The way is written into the config, so that the run goes on as it began whatever memory is free then.

    Args:
        tangents: of this rank.
    """
    problem, config, remark = built.problem, built.config, ""
    way, asked = problem.tangents.compile, problem.tangents.compiled_chunk
    is_planned = problem.device.type == "cpu" and asked > 1 and problem.tangents.chunk_size is None and tangents > 0
    chunk = asked
    if is_planned:
        free = free_bytes(problem.device, ranks.environment.local_world_size)
        chunk = min(ranks.gather_objects(size_that_fits(problem, asked, tangents, built.shape.data, free)))
    too_much = f"do not fit into {percent(COMPILED, 0)} of free memory"
    if chunk == 1 < asked and config.tangents.compile == "auto":
        way, chunk, remark = "off", asked, f"steps are taken eagerly after all: two tangents at once {too_much}"
    elif chunk < asked:
        remark = f"tangents are taken {chunk} at a time, not {asked}: more {too_much}"
    options = replace(problem.tangents, compile=way, compiled_chunk=chunk)
    written = config.tangents.model_copy(update={"compile": way})
    return replace(
        built,
        problem=replace(problem, tangents=options),
        config=config.model_copy(update={"tangents": written}),
        remarks=(*built.remarks, *([remark] if remark else [])),
    )


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
