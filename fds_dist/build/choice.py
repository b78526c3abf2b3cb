"""What a run settles once its ranks can speak: the estimator of `estimator: auto`, and how much reverse mode may keep.

What each rank sees of memory and time differs; what they take must not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fds_dist.build.estimators import AUTO, ReverseTrial, estimator_of
from fds_dist.build.run import Build
from fds_dist.common.memory import free_bytes
from fds_dist.common.words import duration
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.choice import Choice, choose, forward_way, may_pay, reverse_way
from fds_dist.inner.measurement import plain_seconds


@dataclass(frozen=True)
class Seen:
    """What one rank sees, or all of them together."""

    free: int
    """Bytes of free memory."""
    seconds: float
    """Of a plain step; 0 where it was not measured."""
    obstacle: str
    """See `ReverseTrial`."""


def settled(built: Build, ranks: Ranks, spread: bool = True) -> Build:
    """The run with what its ranks agree on.

    Args:
        ranks: those of the run, which all call this alike; not entered, they are this process alone.
        spread: whether `estimator: auto` counts what the slowest rank does, or the work of all together.
    """
    config = built.config
    if config.estimator not in (AUTO, "reverse"):
        return built
    shape = built.shape if spread else MeshShape(1, 1, 1)
    seen = seen_by_all(built, ranks, shape)
    kept = int(config.reverse.memory_share * seen.free)
    problem = replace(built.problem, tangents=replace(built.problem.tangents, kept_bytes=kept))
    built = replace(built, problem=problem)
    return taking(built, chosen(built, shape, seen)) if built.reverse is not None else built


def seen_by_all(built: Build, ranks: Ranks, shape: MeshShape) -> Seen:
    """The least memory, the longest step and the first obstacle of all ranks, on every one of them."""
    problem, horizons, trial = built.problem, built.settings.horizons, built.reverse or ReverseTrial()
    free = free_bytes(problem.device, ranks.environment.local_world_size)
    measure = built.reverse is not None and not trial.obstacle and may_pay(problem, horizons, shape, free)
    told = ranks.gather_objects(Seen(free, plain_seconds(problem, shape.data) if measure else 0.0, trial.obstacle))
    obstacle = next((seen.obstacle for seen in told if seen.obstacle), "")
    return Seen(min(seen.free for seen in told), max(seen.seconds for seen in told), obstacle)


def chosen(built: Build, shape: MeshShape, seen: Seen) -> Choice:
    """The better estimator, given what all ranks have seen.

    Forward mode can keep checkpoints within an outer step, reverse mode cannot: it is taken only where an inner run
    ends before the first of them is due.
    """
    problem, horizons = built.problem, built.settings.horizons
    forward, reverse = forward_way(problem, horizons, shape), reverse_way(problem, horizons, shape)
    choice = choose(forward, reverse, sum(horizons), seen.free, seen.obstacle)
    due = built.config.checkpoint.every_seconds
    lasts = reverse_way(problem, [max(horizons)], shape).steps * shape.data * seen.seconds
    if choice.estimator == "forward" or shape.replica > 1 or lasts <= due or forward.held > seen.free:
        return choice
    return Choice(
        "forward",
        f"an inner run by reverse mode would take about {duration(lasts)}, and it keeps no checkpoint on its way "
        f"(checkpoint.every_seconds={due:g}); forward mode takes {forward.steps / reverse.steps:.1f} times as many "
        "plain steps",
    )


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
