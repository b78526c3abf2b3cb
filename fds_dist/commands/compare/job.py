"""One search by one method: its settings, its trials, and the lines that it prints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fds_dist.commands.compare.space import SearchRange, search_ranges
from fds_dist.common.records import Finite, FloatOrInf, NonNegative, NotNaN, Whole
from fds_dist.common.words import counted, percent
from fds_dist.config.compare import CompareConfig
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.monitor import Consistency
from fds_dist.inner.plan import estimator_cost
from fds_dist.inner.problem import Problem
from fds_dist.outer.progress import OuterSettings
from fds_dist.outer.rules import OuterRule


@dataclass(frozen=True)
class Trial:
    """One inner run of a method: an outer step of a gradient method, a trial of a black box."""

    number: Whole
    values: list[Finite]
    """The numbers of the method's recipe: λ [K], or those of a curve."""
    val_loss: FloatOrInf
    """The loss that the method saw; infinite if the run diverged, or was pruned before its first validation."""
    val_accuracy: NotNaN | None
    steps: Whole
    """Inner steps trained."""
    cost: NonNegative
    """In plain training steps."""
    seconds: NonNegative
    """Summed over the ranks that took part."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the method needs to continue from here."""
    is_answer: bool = False
    """Whether the method answers with it, whatever the losses of the trials before: `val_loss` is a mean over seeds
    that were drawn to choose it."""


def loss_or_infinity(value: float | None) -> float:
    """The loss, or infinity for None and for a loss that is not finite."""
    return value if value is not None and math.isfinite(value) else math.inf


@dataclass(frozen=True)
class Job:
    """What all searches of one repetition share."""

    problem: Problem
    """With the seed of the repetition."""
    rule: OuterRule
    settings: OuterSettings
    estimator: str
    """The estimator of `fds`, by name."""
    options: CompareConfig
    ranks: Ranks
    greedy_discount: float = 0.0
    """What greedy hypergradients remember from step to step."""
    consistency: Consistency = field(default_factory=Consistency)
    average: int = 1
    """`outer.average`: how many last values of the search of `fds` are averaged."""
    judge_seeds: int = 0
    """`outer.judge_seeds`: fresh seeds on which `fds` chooses its answer."""

    @cached_property
    def ranges(self) -> tuple[SearchRange, ...]:
        """Of each learned hyperparameter. Raises `UserError` as `search_ranges` does."""
        return search_ranges(self.problem.space, self.options)

    @property
    def horizon(self) -> int:
        """Inner steps of the longest outer step: the length of a black box's trial, and of every run that may become a
        method's best."""
        return max(self.settings.horizons)

    @cached_property
    def budget(self) -> float:
        """In plain training steps; no method starts a trial that it could not pay for.

        Without a word in the options, it is what all outer steps of `fds` and the choice of its answer cost.
        """
        steps = sum(self.cost(self.estimator, horizon) for horizon in self.settings.horizons)
        return self.options.budget or steps + self.runs_to_answer * self.horizon

    @property
    def runs_to_answer(self) -> int:
        """The plain runs by which `fds` chooses its answer, at the most: of three candidates with an average, else of
        two; without judging, the average trains once."""
        return self.judge_seeds * (3 if self.average > 1 else 2) or int(self.average > 1)

    def cost(self, estimator: str, horizon: int) -> float:
        """One outer step with this estimator over `horizon` inner steps, in plain training steps."""
        return estimator_cost(estimator, self.problem, horizon, self.greedy_discount)


Report = Callable[[list[Trial]], None]
"""Receives trials when they are done, alike on every rank."""

Say = Callable[[str], None]

INTERVAL = 30.0
"""Seconds after the last line until a trial that improves nothing is reported too."""


class SearchLog:
    """Prints the progress of one search."""

    def __init__(self, label: str, job: Job, say: Say) -> None:
        self._label, self._job, self._say = label, job, say
        self._spent, self._best, self._last = 0.0, math.inf, time.monotonic()

    def before(self, trials: Sequence[Trial]) -> None:
        """Called with the recorded trials of an earlier call."""
        for trial in trials:
            self._improves(trial)
        if trials:
            self._print(f"{counted(len(trials), 'trial')} done before, {self._state}")

    def after(self, trials: Sequence[Trial]) -> None:
        """Called with trials that have just ended."""
        for trial in trials:
            if self._improves(trial) or time.monotonic() - self._last > INTERVAL:
                self._print(f"trial {trial.number} done, {self._state}")

    def end(self, trials: int, note: str) -> None:
        """Called when the search is over."""
        self._print(f"ended after {counted(trials, 'trial')}" + (f": {note}" if note else ""))

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

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        self._say(f"{self._label}: {line}")
