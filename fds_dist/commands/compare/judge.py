"""Judging a λ on fresh seeds. The lowest loss that a search saw is partly luck; a judgement is not.

A fresh seed means the same problem with other weights, splits and batches, all of which are functions of (seed, outer
step). A task keeps its seed; therefore each repetition also has its own range of outer steps. No two searches share a
split, and no search shares a split with the judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from fds_dist.commands.compare.job import Say, Trial
from fds_dist.commands.compare.plain_run import plain_run
from fds_dist.common.batch import Batch
from fds_dist.common.randomness import derive_seed
from fds_dist.common.records import FloatOrInf, RecordFile
from fds_dist.common.words import counted
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.problem import Problem
from fds_dist.tasks.base import Loss, Task

STRIDE = 1_000_000
"""Outer steps in the range of one repetition."""

JUDGE = 1000
"""The repetition whose range the judges use."""


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
    """The problem of repetition `index`; the first repetition has the problem itself, as in `optimize`."""
    return problem if index == 0 else _renewed(problem, index, "repetition")


def judging(problem: Problem) -> Problem:
    """The problem that judges train; its outer step is the judge's seed."""
    return _renewed(problem, JUDGE, "judge")


def _renewed(problem: Problem, index: int, purpose: str) -> Problem:
    seed = derive_seed(problem.seed, "compare", purpose, index)
    return replace(problem, seed=seed, task=RenumberedTask(problem.task, index * STRIDE))


Job = TypeVar("Job")
Result = TypeVar("Result")


def in_batches(ranks: Ranks, jobs: Sequence[Job], run: Callable[[Job], Result]) -> Iterator[list[tuple[Job, Result]]]:
    """Runs one job per rank at a time; yields each batch of results in the order of the jobs, on all ranks."""
    for first in range(0, len(jobs), ranks.world_size):
        batch = jobs[first : first + ranks.world_size]
        result = run(batch[ranks.rank]) if ranks.rank < len(batch) else None
        results = ranks.gather_objects(result)[: len(batch)]
        yield list(zip(batch, results, strict=True))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Judgement:
    """One plain run over the whole horizon, from fresh weights on a split and batches that no search has seen."""

    seed: int
    val_loss: FloatOrInf
    val_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True)
class JudgedRun(Judgement):
    """A line of ``judge.jsonl``: a judgement with the λ [K] that was trained."""

    values: list[float]

    @property
    def judgement(self) -> Judgement:
        """The judgement alone."""
        return Judgement(self.seed, self.val_loss, self.val_accuracy, self.test_accuracy)


class Improvement(NamedTuple):
    """A trial that was a method's best when it ended, with the cost and the seconds spent until then."""

    trial: Trial
    cost: float
    seconds: float


def incumbents(trials: Sequence[Trial], horizon: int) -> list[Improvement]:
    """The trials that improved on all trials before them.

    Only whole runs count: the loss after a part of the horizon says nothing about the whole schedule.
    """
    best, cost, seconds, improvements = math.inf, 0.0, 0.0, []
    for trial in trials:
        cost, seconds = cost + trial.cost, seconds + trial.seconds
        if trial.steps == horizon and trial.val_loss < best:
            best = trial.val_loss
            improvements.append(Improvement(trial, cost, seconds))
    return improvements


def judge(
    problem: Problem,
    candidates: Iterable[Sequence[float]],
    horizon: int,
    seeds: int,
    ranks: Ranks,
    file: RecordFile[JudgedRun],
    say: Say,
) -> dict[tuple[float, ...], list[Judgement]]:
    """Trains each λ of `candidates` on the same `seeds` seeds of `problem`, which `judging` made.

    Runs that `file` already holds are not repeated.
    """
    judged = {(tuple(run.values), run.seed): run.judgement for run in ranks.on_first(file.read)}
    wanted = [(values, seed) for values in dict.fromkeys(map(tuple, candidates)) for seed in range(seeds)]
    missing = [job for job in wanted if job not in judged]

    def train(job: tuple[tuple[float, ...], int]) -> JudgedRun:
        values, seed = job
        outcome = plain_run(problem, values, seed, horizon, test=True)
        accuracy = None if outcome.test is None else outcome.test.accuracy
        return JudgedRun(seed, outcome.val.loss, outcome.val.accuracy, accuracy, list(values))

    if missing:
        values = counted(len(wanted) // seeds, "value")
        say(f"judging {values} on {counted(seeds, 'fresh seed')}: {counted(len(missing), 'run')}")
    for batch in in_batches(ranks, missing, train):
        judged |= {job: run.judgement for job, run in batch}
        if ranks.is_first:
            file.append(run for _, run in batch)
    return {values: [judged[values, seed] for seed in range(seeds)] for values, _ in wanted}
