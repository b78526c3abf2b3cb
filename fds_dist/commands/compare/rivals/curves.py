"""The schedules that people tune by hand: a warm-up and a decay to zero, with a value of its own at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fds_dist.commands.compare.job import Job
from fds_dist.commands.compare.rivals.recipe import Setting, constants, shared_ranges
from fds_dist.commands.compare.space import SearchRange, warmup_range
from fds_dist.common.faults import Fault
from fds_dist.common.values import Value
from fds_dist.inner.problem import Problem
from fds_dist.schedule.shapes import DEFAULT
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.schedule.starts import curve_means

DECAYING = ("lr", "adamw_lr")
"""The hyperparameters that follow the curve; all others are constant."""


@dataclass(frozen=True)
class Curve:
    """A linear warm-up from 0 to a peak, then a decay to 0 at the end of the horizon, one of `DECAYS`.

    Its numbers are the warm-up's share of the horizon, the peak of the learning rate, and one constant for each other
    learned hyperparameter; parameter groups share them. At step t of T the rate is the mean of the curve over
    [t/T, (t + 1)/T].
    """

    name: str

    def faults(self, job: Job) -> Iterator[Fault]:
        """A curve needs something that follows it."""
        return decay_faults(self.name, job.problem.space)

    def ranges(self, job: Job) -> dict[str, SearchRange]:
        """See `Recipe`."""
        return {"warmup": warmup_range(job.options), **shared_ranges(job.ranges)}

    def setting(self, problem: Problem, horizon: int, numbers: Sequence[float]) -> Setting:
        """See `Recipe`."""
        return scaled(problem, curve_means(self.name, 1.0, 0.0, numbers[0], horizon), numbers[1:])

    def named(self, problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
        """See `Recipe`."""
        return named_numbers(problem, numbers)


def decay_faults(method: str, space: HyperparameterSpace) -> Iterator[Fault]:
    """Why `method`, which tunes a learning rate and a warm-up, cannot search `space`."""
    if not any(owner.base in DECAYING for owner in space.learned):
        yield Fault("compare.methods", f"{method} tunes a learned lr, and lr is fixed", f"methods without {method}")
    if any(owner.base == "warmup" for owner in space.learned):
        problem = f"{method} searches the share of its warm-up, and a hyperparameter has the name warmup"
        yield Fault("compare.methods", problem, f"methods without {method}, or another name")


def named_numbers(problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
    """The warm-up's share, then one number per hyperparameter, by name."""
    names = ("warmup", *dict.fromkeys(owner.base for owner in problem.space.learned))
    return {name: [number] for name, number in zip(names, numbers, strict=True)}


def scaled(problem: Problem, factors: Sequence[float], numbers: Sequence[float]) -> Setting:
    """The run whose learning rate at step t is its number times `factors` [T], within its bounds.

    Args:
        numbers: one per learned hyperparameter, in the order of their first copies.
    """
    space = problem.space
    by_base = dict(zip(dict.fromkeys(owner.base for owner in space.learned), numbers, strict=True))
    constant, owners, values = constants(space, by_base), [], list[float]()
    for owner in space.learned:
        decays = owner.base in DECAYING
        owners.append(replace(owner, buckets=len(factors) if decays else 1, shape=DEFAULT))
        peak = by_base[owner.base]
        values += [owner.clamp(peak * factor) for factor in factors] if decays else constant[owner.name]
    return Setting(replace(problem, space=replace(space, learned=tuple(owners))), values)
