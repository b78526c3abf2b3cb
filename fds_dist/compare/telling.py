"""What a person reads while a search goes on: a line per improvement, and one now and then between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from fds_dist.compare.job import Job
from fds_dist.compare.records import Trial

Say = Callable[[str], None]

INTERVAL = 30.0
"""Seconds of silence after which a trial that improves nothing is told too."""


class Teller:
    """Follows one search."""

    def __init__(self, label: str, job: Job, say: Say) -> None:
        self._label, self._job, self._say = label, job, say
        self._spent, self._best, self._last = 0.0, math.inf, time.monotonic()

    def before(self, trials: Sequence[Trial]) -> None:
        """The trials of an earlier start."""
        for trial in trials:
            self._improves(trial)
        if trials:
            self._tell(f"{len(trials)} trials were done before, {self._state}")

    def after(self, trials: Sequence[Trial]) -> None:
        """Trials that have just ended."""
        for trial in trials:
            if self._improves(trial) or time.monotonic() - self._last > INTERVAL:
                self._tell(f"trial {trial.number} done, {self._state}")

    def end(self, trials: int, note: str) -> None:
        """The search is over."""
        self._tell(f"ended after {trials} trials" + (f": {note}" if note else ""))

    def _improves(self, trial: Trial) -> bool:
        self._spent += trial.cost
        better = trial.steps == self._job.horizon and trial.val_loss < self._best
        self._best = trial.val_loss if better else self._best
        return better

    @property
    def _state(self) -> str:
        return f"best validation loss {self._best:.4g}, {self._spent / self._job.budget:.0%} of the budget spent"

    def _tell(self, line: str) -> None:
        self._last = time.monotonic()
        self._say(f"{self._label}: {line}")
