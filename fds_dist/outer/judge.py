"""Judging a λ on fresh seeds. The lowest loss that a search saw is partly luck; a judgement is not.

A fresh seed means the same problem with other weights, splits and batches, all of which are functions of (seed, outer
step). A task keeps its seed; therefore each repetition also has its own range of outer steps. No two searches share a
split, and no search shares a split with the judges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from fds_dist.common.batch import Batch
from fds_dist.common.randomness import derive_seed
from fds_dist.common.records import Finite, FloatOrInf, NotNaN, RecordFile, Whole
from fds_dist.common.words import counted, duration
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.plain_run import blocks_of, plain_run
from fds_dist.inner.problem import Problem
from fds_dist.tasks.base import Loss, Task

STRIDE = 1_000_000
"""Outer steps in the range of one repetition."""

SAY_AGAIN = 30.0
"""Seconds after which a long judging says how far it is."""

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


class Meetings:
    """Brings all ranks together `count` times. Some ranks train, some have nothing to train, and a run that diverges
    ends early: without meetings, one of them could wait for the others for longer than ranks may stay silent."""

    def __init__(self, ranks: Ranks, count: int) -> None:
        self._ranks, self._left = ranks, count if ranks.world_size > 1 else 0

    def meet(self) -> None:
        """The next meeting."""
        if self._left:
            self._left -= 1
            self._ranks.gather_objects(None)

    def end(self) -> None:
        """The meetings that are left."""
        while self._left:
            self.meet()


Job = TypeVar("Job")
Result = TypeVar("Result")


def in_batches(
    ranks: Ranks, jobs: Sequence[Job], run: Callable[[Job, Meetings], Result], meetings: int
) -> Iterator[list[tuple[Job, Result]]]:
    """Runs a job at a time on each team, the ranks that share a run along `data`; yields each batch of results in the
    order of the jobs, on all ranks. `meetings`: how often a job calls `Meetings.meet`, at the most."""
    size = ranks.shape.data
    teams, team = ranks.world_size // size, ranks.rank // size
    for first in range(0, len(jobs), teams):
        batch, wave = jobs[first : first + teams], Meetings(ranks, meetings)
        result = run(batch[team], wave) if team < len(batch) else None
        wave.end()
        results = ranks.gather_objects(result)[::size][: len(batch)]
        yield list(zip(batch, results, strict=True))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Judgement:
    """One plain run over the whole horizon, from fresh weights on a split and batches that no search has seen."""

    seed: Whole
    val_loss: FloatOrInf
    val_accuracy: NotNaN | None
    test_accuracy: NotNaN | None


@dataclass(frozen=True)
class JudgedRun(Judgement):
    """A line of ``judge.jsonl``: a judgement with the λ [K] that was trained."""

    values: list[Finite]
    setting: str = ""
    """Names everything else that the run depends on, where a folder may hold runs of several settings."""

    @property
    def judgement(self) -> Judgement:
        """The judgement alone."""
        return Judgement(self.seed, self.val_loss, self.val_accuracy, self.test_accuracy)


Judgements = dict[tuple[float, ...], list[Judgement]]
"""λ → its judgements, one per seed."""

Wanted = tuple[tuple[float, ...], int]
"""A λ and a seed."""


Arrange = Callable[[Problem, int, Sequence[float]], tuple[Problem, Sequence[float]]]
"""(problem, horizon, a candidate's numbers) → the problem to train, and λ in its space."""


def _as_it_is(problem: Problem, horizon: int, values: Sequence[float]) -> tuple[Problem, Sequence[float]]:
    """For candidates that are λs of the problem."""
    return problem, values


@dataclass(frozen=True)
class Judge:
    """Trains λs on the same fresh seeds. Every method is called alike on all ranks."""

    problem: Problem
    """That `judging` made."""
    horizon: int
    seeds: int
    ranks: Ranks
    file: RecordFile[JudgedRun] | None = None
    """Holds each run that has ended, so that a judging that was cut off goes on; None: none is kept."""
    say: Callable[[str], None] = lambda line: None
    """Hears about the progress, on every rank."""
    setting: str = ""
    """See `JudgedRun.setting`."""
    arrange: Arrange = _as_it_is
    """Makes the run of a candidate."""
    test: bool = False
    """Whether to evaluate on the test data too."""

    def missing(self, candidates: Iterable[Sequence[float]]) -> int:
        """The runs that `judge` would train."""
        return len(self._missing(candidates, self._recorded()))

    def judge(self, candidates: Iterable[Sequence[float]]) -> Judgements:
        """Trains each λ of `candidates` on each seed; those that are equal once. A run that is in `file` already is not
        repeated. A run that diverges has the loss infinity."""
        candidates = list(candidates)
        judged = self._recorded()
        missing = self._missing(candidates, judged)
        if missing:
            values = counted(len(self._wanted(candidates)) // self.seeds, "value")
            self.say(f"judging {values} on {counted(self.seeds, 'fresh seed')}: {counted(len(missing), 'run')}")
        done, began = 0, time.monotonic()
        said = began
        for batch in in_batches(self.ranks, missing, self._train, blocks_of(self.horizon)):
            judged |= {job: run.judgement for job, run in batch}
            if self.file:
                self.ranks.on_first(partial(self.file.append, [run for _, run in batch]))
            done, now = done + len(batch), time.monotonic()
            if done < len(missing) and now - said >= SAY_AGAIN:
                left, said = (now - began) / done * (len(missing) - done), now
                self.say(f"judging: {done} of {counted(len(missing), 'run')} done, about {duration(left)} left")
        return {values: [judged[values, seed] for seed in range(self.seeds)] for values, _ in self._wanted(candidates)}

    def _wanted(self, candidates: Iterable[Sequence[float]]) -> list[Wanted]:
        return [(values, seed) for values in dict.fromkeys(map(tuple, candidates)) for seed in range(self.seeds)]

    def _missing(self, candidates: Iterable[Sequence[float]], judged: Mapping[Wanted, Judgement]) -> list[Wanted]:
        return [job for job in self._wanted(candidates) if job not in judged]

    def _recorded(self) -> dict[Wanted, Judgement]:
        runs = self.ranks.on_first(self.file.read) if self.file else []
        return {(tuple(run.values), run.seed): run.judgement for run in runs if run.setting == self.setting}

    def _train(self, job: Wanted, meetings: Meetings) -> JudgedRun:
        values, seed = job
        problem, numbers = self.arrange(self.problem, self.horizon, values)
        outcome = plain_run(
            problem, numbers, seed, self.horizon, test=self.test, ranks=self.ranks, on_block=meetings.meet
        )
        accuracy = None if outcome.test is None else outcome.test.accuracy
        return JudgedRun(seed, outcome.val.loss, outcome.val.accuracy, accuracy, list(values), self.setting)
