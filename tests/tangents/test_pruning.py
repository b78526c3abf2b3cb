"""Pruning: which steps of a window take part in the tangent update."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest

from fds_dist.tangents.step import Pruning


def kept(mode: str, ratio: float, window: int) -> list[int]:
    pruning = Pruning(mode, ratio)
    return [offset for offset in range(window) if pruning.keeps(offset, window)]


@pytest.mark.parametrize(
    ("mode", "ratio", "window", "expected"),
    [
        ("alternate", 0.5, 6, [0, 2, 4]),
        ("alternate", 0.5, 7, [0, 2, 4, 6]),
        ("alternate", 0.75, 9, [0, 4, 8]),
        ("alternate", 0.9, 25, [0, 10, 20]),
        ("truncate", 0.5, 6, [3, 4, 5]),
        ("truncate", 0.5, 7, [3, 4, 5, 6]),
        ("truncate", 0.75, 8, [6, 7]),
        ("truncate", 0.9, 10, [9]),
    ],
)
def test_kept_steps(mode: str, ratio: float, window: int, expected: list[int]) -> None:
    assert kept(mode, ratio, window) == expected


@pytest.mark.parametrize("mode", ["alternate", "truncate"])
@pytest.mark.parametrize("window", [1, 2, 5, 10, 37])
def test_the_asked_share_is_kept_rounded_up_so_that_no_window_loses_its_hyperparameter(mode: str, window: int) -> None:
    assert kept(mode, 0.0, window) == list(range(window))
    for tenths in range(1, 10):  # 1 - 0.1·n is no exact float: rounding must not move a step
        assert len(kept(mode, tenths / 10, window)) == ceil(window * (10 - tenths) / 10)
        assert kept(mode, tenths / 10, window)


def test_alternate_keeps_the_first_step_of_each_period_for_any_ratio() -> None:
    for ratio in (0.5, 2 / 3, 0.75, 0.8, 0.95):
        steps = kept("alternate", ratio, 1000)
        period = 1 / (1 - ratio)
        assert steps[0] == 0
        gaps = {after - before for before, after in pairwise(steps)}
        assert gaps <= {int(period), ceil(period)}


def test_truncate_skips_one_part_at_the_front() -> None:
    for window in (1, 7, 100):
        for ratio in (0.1, 1 / 3, 0.5, 0.99):
            steps = kept("truncate", ratio, window)
            assert steps == list(range(window - len(steps), window))
