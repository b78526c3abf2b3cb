"""Fresh randomness: the same problem with other weights, splits and batches.

All of these are functions of (seed, outer step). A task keeps its own seed, so a repetition has other outer steps too,
far from those of all others: no two searches share a split, and no search shares one with the judges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fds_dist.engine.problem import Problem
from fds_dist.randomness import derive_seed
from fds_dist.tasks.base import Batch, Loss, Task

STRIDE = 1_000_000
"""Outer steps that belong to one repetition."""

JUDGE = 1000
"""The repetition that belongs to the judges."""


@dataclass(frozen=True)
class RenumberedTask:
    """A task whose outer steps begin at `first`."""

    task: Task
    first: int

    @property
    def steps_per_epoch(self) -> int:
        return self.task.steps_per_epoch

    @property
    def loss(self) -> Loss:
        return self.task.loss

    def train_batches(self, outer_step: int, epoch: int) -> Iterable[Batch]:
        return self.task.train_batches(self.first + outer_step, epoch)

    def val_batches(self, outer_step: int) -> Iterable[Batch]:
        return self.task.val_batches(self.first + outer_step)

    def test_batches(self) -> Iterable[Batch]:
        return self.task.test_batches()

    def __getattr__(self, name: str) -> Any:
        """The optional attributes of a task."""
        return getattr(self.task, name)


def repetition(problem: Problem, index: int) -> Problem:
    """The problem for the repetition `index`; the first is the problem itself, as `optimize` searches it."""
    return problem if index == 0 else _renewed(problem, index, "repetition")


def judging(problem: Problem) -> Problem:
    """The problem that judges train; its outer step `seed` is the judges' seed."""
    return _renewed(problem, JUDGE, "judge")


def _renewed(problem: Problem, index: int, purpose: str) -> Problem:
    seed = derive_seed(problem.seed, "compare", purpose, index)
    return replace(problem, seed=seed, task=RenumberedTask(problem.task, index * STRIDE))
