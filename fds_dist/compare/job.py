"""The interface of a method: what it is asked to search, and how it tells what it tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fds_dist.compare.records import Trial
from fds_dist.compare.space import SearchRange
from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.monitor import Consistency
from fds_dist.engine.outer_loop import OuterSettings
from fds_dist.engine.problem import Problem
from fds_dist.outer import OuterRule


@dataclass(frozen=True)
class Job:
    """One search by one method."""

    problem: Problem
    """Its seed is the repetition's."""
    rule: OuterRule
    settings: OuterSettings
    estimator: str
    """The estimator of `fds`, by name."""
    greedy_discount: float
    """What greedy hypergradients remember from step to step."""
    ranges: tuple[SearchRange, ...]
    horizon: int
    """Inner steps of a black box's trial, and of every run that may be a method's best: the longest outer step's."""
    budget: float
    """In plain training steps; no method begins what it could not pay for."""
    ranks: Ranks
    consistency: Consistency = field(default_factory=Consistency)


Report = Callable[[list[Trial]], None]
"""Takes trials as they finish, on every rank alike."""


class Method(Protocol):
    """Goes on from the trials of an earlier start until the budget is spent. Called on all ranks with the same
    arguments; returns what a person should know about how it ended, or ""."""

    def __call__(self, job: Job, before: Sequence[Trial], report: Report) -> str: ...
