"""What a search could answer with: the mean of its last values on the outer scale, its best, its last, its start."""

from __future__ import annotations

import math

import pytest

from fds_dist.outer.candidates import candidates, mean_on_scale
from fds_dist.outer.progress import OuterProgress
from fds_dist.outer.rules import Element, OuterState
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tracking.records import OuterRecord

SPACE = HyperparameterSpace(
    (
        Hyperparameter("lr", 0.1, 0.1, buckets=2, bounds=(0.0, 1.0), scale="log"),
        Hyperparameter("momentum", 0.5, 0.1, bounds=(0.0, 0.99), scale="log"),
        Hyperparameter("weight_decay", 0.0, 0.1),
    )
)
ROUNDING = 1e-14
"""Relative: a logarithm, a sum and an exponential in float64."""

VISITED = [[0.1, 0.1, 0.5, 0.0], [0.2, 0.1, 0.75, 1.0], [0.4, 0.1, 0.9, 2.0], [0.8, 0.1, 0.99, 6.0]]
"""λ at the start, and after each of three updates."""


def history() -> list[OuterRecord]:
    """Three outer steps, with horizons 10, 20 and 30."""
    return [
        OuterRecord(number, 10 * (number + 1), SPACE.unpack(values), {}, 1.0, None, 1.0, 1)  # type: ignore[arg-type]
        for number, values in enumerate(VISITED[:3])
    ]


def progress(best: int | None = 1) -> OuterProgress:
    """After three outer steps, of which the one in the middle was the best."""
    state = OuterState((Element(0.1),) * SPACE.size)
    incumbent = None if best is None else (best, VISITED[best], 0.5, None)
    return OuterProgress(3, VISITED[3], state, horizon=30, best=incumbent)


def test_the_mean_is_taken_on_the_scale_of_each_hyperparameter() -> None:
    mean = mean_on_scale(SPACE, VISITED[1:])
    expected = [0.4, 0.1, 1 - (0.25 * 0.1 * 0.01) ** (1 / 3), 3.0]  # geometric in lr and 1 - momentum
    assert mean == pytest.approx(expected, rel=ROUNDING)
    assert mean[1] == 0.1  # equal numbers: the very same, so that equal candidates are judged once


def test_the_mean_stays_within_the_bounds() -> None:
    third = Hyperparameter("lr", 0.3, 0.1, bounds=(0.0, 0.3), scale="log")
    space = HyperparameterSpace((third,))
    nearly = math.nextafter(0.3, 0)
    assert mean_on_scale(space, [[0.3], [nearly], [0.3]])[0] <= 0.3


@pytest.mark.parametrize(("average", "rows"), [(2, VISITED[2:]), (3, VISITED[1:]), (9, VISITED[1:])])
def test_the_average_is_of_the_last_updates_and_never_of_the_start(average: int, rows: list[list[float]]) -> None:
    answers = candidates(SPACE, progress(), history(), average)
    assert list(answers) == ["average", "best", "last", "start"]
    assert answers["average"].values == mean_on_scale(SPACE, rows)


def test_each_candidate_has_the_horizon_that_it_was_learned_with() -> None:
    answers = candidates(SPACE, progress(), history(), average=2)
    assert {name: answer.horizon for name, answer in answers.items()} == {
        **{"average": 30, "best": 20, "last": 30, "start": 10}
    }
    assert {name: answer.outer_step for name, answer in answers.items()} == {
        **{"average": None, "best": 1, "last": None, "start": 0}
    }
    assert (answers["best"].values, answers["last"].values, answers["start"].values) == (*VISITED[1::2], VISITED[0])


def test_without_an_average_the_last_values_come_first() -> None:
    assert list(candidates(SPACE, progress(), history(), average=1)) == ["last", "best", "start"]
    assert list(candidates(SPACE, progress(best=None), history(), average=1)) == ["last", "start"]


def test_records_after_the_progress_are_left_out() -> None:
    """A run that goes on from an earlier checkpoint still has the later lines of its history."""
    state = OuterState((Element(0.1),) * SPACE.size)
    earlier = OuterProgress(2, VISITED[2], state, horizon=20)
    assert candidates(SPACE, earlier, history(), 4)["average"].values == mean_on_scale(SPACE, VISITED[1:3])
