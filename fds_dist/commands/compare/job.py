"""One search by one method: what it is asked to search, what it has tried, and what a person reads while it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fds_dist.commands.compare.space import SearchRange
from fds_dist.common.records import FloatOrInf
from fds_dist.common.words import counted, percent
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.monitor import Consistency
from fds_dist.inner.problem import Problem
from fds_dist.outer.loop import OuterSettings
from fds_dist.outer.rules import OuterRule


@dataclass(frozen=True)
class Trial:
    """One inner run of a method: an outer step of a gradient method, a trial of a black box."""

    number: int
    values: list[float]
    """[K] the λ it trained with."""
    val_loss: FloatOrInf
    """As the method saw it; infinite where the run diverged, and where a pruned run ended that early."""
    val_accuracy: float | None
    steps: int
    """Inner steps trained."""
    cost: float
    """In plain training steps."""
    seconds: float
    """Summed over the ranks that worked on it."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the method needs to go on from here."""


def loss_or_infinity(value: float | None) -> float:
    """A loss for comparing: whatever is not finite is infinitely bad."""
    return value if value is not None and math.isfinite(value) else math.inf


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


Say = Callable[[str], None]

INTERVAL = 30.0
"""Seconds of silence after which a trial that improves nothing is reported too."""


class SearchLog:
    """Tells a person how one search goes."""

    def __init__(self, label: str, job: Job, say: Say) -> None:
        self._label, self._job, self._say = label, job, say
        self._spent, self._best, self._last = 0.0, math.inf, time.monotonic()

    def before(self, trials: Sequence[Trial]) -> None:
        """The trials of an earlier start."""
        for trial in trials:
            self._improves(trial)
        if trials:
            self._tell(f"{counted(len(trials), 'trial')} done before, {self._state}")

    def after(self, trials: Sequence[Trial]) -> None:
        """Trials that have just ended."""
        for trial in trials:
            if self._improves(trial) or time.monotonic() - self._last > INTERVAL:
                self._tell(f"trial {trial.number} done, {self._state}")

    def end(self, trials: int, note: str) -> None:
        """The search is over."""
        self._tell(f"ended after {counted(trials, 'trial')}" + (f": {note}" if note else ""))

    def _improves(self, trial: Trial) -> bool:
        self._spent += trial.cost
        better = trial.steps == self._job.horizon and trial.val_loss < self._best
        self._best = trial.val_loss if better else self._best
        return better

    @property
    def _state(self) -> str:
        return (
            f"best validation loss {self._best:.4g}, {percent(self._spent / self._job.budget, 0)} of the budget spent"
        )

    def _tell(self, line: str) -> None:
        self._last = time.monotonic()
        self._say(f"{self._label}: {line}")
