"""What a search could answer: the mean of its last values, its best, its last, and the start that all began with.

A search moves through noise, so its last values are rarely its best, and the lowest loss that it saw is partly luck.
The mean of the last values evens the wandering out (Polyak & Juditsky, 1992, average iterates alike).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fds_dist.outer.progress import OuterProgress
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tracking.records import OuterRecord


class Candidate(NamedTuple):
    """Values that a search could answer with."""

    values: list[float]
    """[K] λ."""
    horizon: int
    """The inner steps of the run that it was learned with."""
    outer_step: int | None = None
    """The outer step that trained with these very values; None where none did."""


def candidates(
    space: HyperparameterSpace, progress: OuterProgress, history: Sequence[OuterRecord], average: int
) -> dict[str, Candidate]:
    """The candidates by name, the preferred one first: what counts where nothing is judged, and among equals.

    average: the mean of the last `average` values of λ, each of them after an update; left out where that is 1.
    best: the values that trained to the lowest validation loss; left out where every run diverged.
    last: the values after the last update. start: those before the first.

    Args:
        progress: of at least one outer step.
        history: a record of each outer step of `progress`.
    """
    history = [record for record in history if record.outer_step < progress.outer_step]
    trained = {record.outer_step: record for record in history}
    answers: dict[str, Candidate] = {}
    if average > 1:
        updated = [space.pack(record.hyperparameters) for record in history if record.outer_step > 0]
        rows = [*updated, progress.values][-average:]
        answers["average"] = Candidate(mean_on_scale(space, rows), progress.horizon)
    last = Candidate(list(progress.values), progress.horizon)
    if progress.best is not None:
        outer_step, values, *_ = progress.best
        horizon = trained[outer_step].horizon if outer_step in trained else progress.horizon
        best = {"best": Candidate(list(values), horizon, outer_step)}
    else:
        best = {}
    start = Candidate(space.initial(), trained[0].horizon if 0 in trained else progress.horizon, 0)
    preferred = answers or {"last": last}
    return {**preferred, **best, "last": last, "start": start}


def mean_on_scale(space: HyperparameterSpace, rows: Sequence[Sequence[float]]) -> list[float]:
    """[K] The mean of several λ [K], of each element on the scale on which the outer rule moves it.

    Within the bounds: rounding on the way to the scale and back could leave them.
    """
    columns = zip(*rows, strict=True)
    return [_mean(slot.owner, column) for slot, column in zip(space.elements, columns, strict=True)]


def _mean(owner: Hyperparameter, numbers: Sequence[float]) -> float:
    if len(set(numbers)) == 1:  # the very number, without the rounding of a logarithm and back
        return numbers[0]
    coordinate = math.fsum(map(owner.to_scale, numbers)) / len(numbers)
    return owner.clamp(owner.from_scale(coordinate))
