"""What the comparison needs of a method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fds_dist.commands.compare.job import Job, Report, Trial
from fds_dist.commands.compare.rivals.recipe import Recipe
from fds_dist.common.faults import Fault


class Rival(Protocol):
    """One method of the comparison, FDS included."""

    @property
    def label(self) -> str:
        """Its name in figures."""
        ...

    def faults(self, job: Job) -> Iterator[Fault]:
        """Why it cannot take part: what it cannot do in this job, and what is not installed."""
        ...

    def check(self, job: Job, trial: Trial) -> None:
        """Raises a ValueError where the numbers or the `state` of a recorded trial are not what the method records."""
        ...

    def search(self, job: Job, before: Sequence[Trial], report: Report) -> str:
        """Continues from the recorded trials `before` until the budget is spent.

        Called alike on all ranks, as is `report`.

        Returns:
            A note on how the search ended, or "".
        """
        ...

    def recipe(self, job: Job, trials: Sequence[Trial], trial: Trial) -> Recipe:
        """What the numbers of `trial`, one of all recorded `trials` of the search, stand for."""
        ...
