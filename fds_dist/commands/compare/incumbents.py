"""The trials by which a search improved on itself: what it would have answered, had it ended then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fds_dist.commands.compare.job import Trial


class Improvement(NamedTuple):
    """A trial that was a method's best when it ended, with the cost and the seconds spent until then."""

    trial: Trial
    cost: float
    seconds: float


def incumbents(trials: Sequence[Trial], horizon: int) -> list[Improvement]:
    """The trials that improved on all trials before them, and the method's answer.

    Only whole runs count: the loss after a part of the horizon says nothing about the whole schedule.
    """
    best, cost, seconds, improvements = math.inf, 0.0, 0.0, []
    for trial in trials:
        cost, seconds = cost + trial.cost, seconds + trial.seconds
        if trial.steps == horizon and (trial.val_loss < best or (trial.is_answer and math.isfinite(trial.val_loss))):
            best = trial.val_loss
            improvements.append(Improvement(trial, cost, seconds))
    return improvements
