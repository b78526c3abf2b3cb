"""From the numbers that a search suggests to the training run that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from fds_dist.commands.compare.job import Job
from fds_dist.commands.compare.space import SearchRange
from fds_dist.common.faults import Fault
from fds_dist.common.values import Value
from fds_dist.inner.problem import Problem
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.space import HyperparameterSpace


class Setting(NamedTuple):
    """A training run but for its seed and its horizon."""

    problem: Problem
    values: Sequence[float]
    """[K] λ in the problem's own space."""

    def schedule(self, horizon: int) -> Schedule:
        """The values of each step of the run."""
        return self.problem.space.schedule(self.values, horizon, self.problem.optimizer_info)


class Recipe(Protocol):
    """What a black box searches: N numbers, their ranges, and how a network is trained with them. It is hashable."""

    @property
    def name(self) -> str:
        """What tells its numbers from those of other recipes among the judged runs."""
        ...

    def faults(self, job: Job) -> Iterator[Fault]:
        """Why it cannot train the job's problem."""
        ...

    def ranges(self, job: Job) -> Mapping[str, SearchRange]:
        """The N numbers in their order: name → range."""
        ...

    def setting(self, problem: Problem, horizon: int, numbers: Sequence[float]) -> Setting:
        """The run of `horizon` steps with `numbers` [N]."""
        ...

    def named(self, problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
        """The numbers [N] as `compare.json` shows them."""
        ...


class Candidate(NamedTuple):
    """A training run that may be a method's best."""

    recipe: Recipe
    numbers: tuple[float, ...]

    def setting(self, problem: Problem, horizon: int) -> Setting:
        """The run over `horizon` steps."""
        return self.recipe.setting(problem, horizon, self.numbers)


@dataclass(frozen=True)
class Buckets:
    """λ itself: every bucket of every learned hyperparameter is a number."""

    name: str = ""

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Recipe`."""
        return iter(())

    def ranges(self, job: Job) -> dict[str, SearchRange]:
        """See `Recipe`."""
        return {f"{each.owner.name}.{number}": each for each in job.ranges for number in range(each.owner.count)}

    def setting(self, problem: Problem, horizon: int, numbers: Sequence[float]) -> Setting:
        """See `Recipe`."""
        return Setting(problem, numbers)

    def named(self, problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
        """See `Recipe`."""
        return problem.space.unpack(numbers)


def shared_ranges(ranges: Sequence[SearchRange]) -> dict[str, SearchRange]:
    """One range per hyperparameter, for all its buckets and parameter groups: the hull of the groups' ranges."""
    shared: dict[str, SearchRange] = {}
    for each in ranges:
        before = shared.setdefault(each.owner.base, each)
        low, high = min(before.low, each.low), max(before.high, each.high)
        shared[each.owner.base] = replace(before, low=low, high=high)
    return shared


def constants(space: HyperparameterSpace, numbers: Mapping[str, float]) -> dict[str, list[float]]:
    """Learned name → [size] the number of its hyperparameter in each entry, within its bounds."""
    return {owner.name: [owner.clamp(numbers[owner.base])] * owner.size for owner in space.learned}
