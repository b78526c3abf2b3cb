"""What a run settles once its ranks can speak: the estimator of `estimator: auto`, how much reverse mode may keep, and
how many tangents there is memory for at once.

What each rank sees of memory differs; what they take must not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fds_dist.build.chunk import with_chunk
from fds_dist.build.estimators import AUTO, ReverseTrial, estimator_of
from fds_dist.build.run import Build
from fds_dist.common.memory import free_bytes
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.choice import Choice, choose, forward_way, reverse_way


@dataclass(frozen=True)
class Seen:
    """What one rank sees, or all of them together."""

    free: int
    """Bytes of free memory."""
    obstacle: str
    """See `ReverseTrial`."""


def settled(built: Build, ranks: Ranks, spread: bool = True) -> Build:
    """The run with what its ranks agree on: the estimator, and how many tangents they take at once.

    Args:
        ranks: those of the run, which all call this alike; not entered, they are this process alone.
        spread: see `with_estimator`.
    """
    return with_chunk(with_estimator(built, ranks, spread), ranks)


def with_estimator(built: Build, ranks: Ranks, spread: bool) -> Build:
    """The run with its estimator, and what reverse mode may keep.

    Args:
        ranks: see `settled`.
        spread: whether `estimator: auto` counts what the slowest rank does, or the work of all together.
    """
    config = built.config
    if config.estimator not in (AUTO, "reverse"):
        return built
    shape = built.shape if spread else MeshShape(1, 1, 1)
    seen = seen_by_all(built, ranks)
    kept = int(config.reverse.memory_share * seen.free)
    problem = replace(built.problem, tangents=replace(built.problem.tangents, kept_bytes=kept))
    built = replace(built, problem=problem)
    return taking(built, chosen(built, shape, seen)) if built.reverse is not None else built


def seen_by_all(built: Build, ranks: Ranks) -> Seen:
    """The least memory and the first obstacle of all ranks, on every one of them."""
    trial = built.reverse or ReverseTrial()
    free = free_bytes(built.problem.device, ranks.environment.local_world_size)
    told = ranks.gather_objects(Seen(free, trial.obstacle))
    obstacle = next((seen.obstacle for seen in told if seen.obstacle), "")
    return Seen(min(seen.free for seen in told), obstacle)


def chosen(built: Build, shape: MeshShape, seen: Seen) -> Choice:
    """The better estimator, given what all ranks have seen."""
    problem, horizons = built.problem, built.settings.horizons
    forward, reverse = forward_way(problem, horizons, shape), reverse_way(problem, horizons, shape)
    return choose(forward, reverse, sum(horizons), seen.free, seen.obstacle)


def as_before(built: Build, earlier: str | None) -> Build:
    """The run that goes on with the estimator that it began with, where `estimator: auto` might choose another now."""
    if built.choice is None or earlier not in {"forward", "reverse"} - {built.choice.estimator}:
        return built
    return taking(built, Choice(earlier, "the run began with it"))


def taking(built: Build, choice: Choice) -> Build:
    """The run with the estimator of `choice`, in its config too."""
    config = built.config.model_copy(update={"estimator": choice.estimator})
    remarks = [f"estimator auto takes {choice.estimator}: {choice.reason}"]
    if built.reverse is not None and choice.estimator == "reverse":
        remarks += built.reverse.remarks
    remarks = tuple(dict.fromkeys((*built.remarks, *remarks)))
    return replace(built, config=config, estimator=estimator_of(config), choice=choice, reverse=None, remarks=remarks)
