"""A cosine in the buckets of the config: what the search space of `fds` can hold of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fds_dist.commands.compare.job import Job
from fds_dist.commands.compare.rivals.recipe import Setting
from fds_dist.commands.compare.space import SearchRange
from fds_dist.common.faults import Fault
from fds_dist.common.values import Value
from fds_dist.inner.problem import Problem
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.schedule.starts import curve_values


@dataclass(frozen=True)
class Staircase:
    """Half a cosine in buckets: a number for each learned hyperparameter of each parameter group."""

    name: str = "cosine_buckets"

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Recipe`."""
        return iter(())

    def ranges(self, job: Job) -> dict[str, SearchRange]:
        """See `Recipe`."""
        return {each.owner.name: each for each in job.ranges}

    def setting(self, problem: Problem, horizon: int, numbers: Sequence[float]) -> Setting:
        """See `Recipe`."""
        return Setting(problem, cosine_buckets(problem.space, numbers))

    def named(self, problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
        """See `Recipe`."""
        return problem.space.unpack(cosine_buckets(problem.space, numbers))


def cosine_buckets(space: HyperparameterSpace, heights: Sequence[float]) -> list[float]:
    """λ [K] of half a cosine, from one height per learned hyperparameter.

    The learning rate falls from its height to 0: each bucket is the cosine's mean over its window, and each knot of the
    shape `linear` the cosine where it stands, within the bounds.
    All other hyperparameters are constant, and the numbers of a vector alike.
    """
    values: list[float] = []
    for owner, height in zip(space.learned, heights, strict=True):
        row = [height] * owner.buckets
        if owner.base == "lr" and owner.buckets > 1:
            row = [owner.clamp(height * factor) for factor in curve_values("cosine", 1.0, 0.0, 0.0, owner.shaped)]
        values += [value for value in row for _ in range(owner.size)]
    return values
