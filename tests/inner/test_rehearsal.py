"""The cost of reverse mode's way back, timed before a search."""

from __future__ import annotations

from typing import Any

import pytest
from problems import TensorTask, flat, images, make_problem, mlp

from fds_dist.inner import rehearsal
from fds_dist.inner.estimators import estimate_reverse
from fds_dist.inner.estimators.reverse import ReverseSweep
from fds_dist.inner.run import InnerRun

BUCKETS = {"lr": [0.2, 0.1], "momentum": [0.5]}


class Clock:
    """Seconds that pass only in what is taken: a step takes 1, going back through it `back` more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, back: float) -> None:
        self.now = 0.0
        step, pull = ReverseSweep.differentiable_step, ReverseSweep.pull_back

        def differentiable_step(*arguments: Any, **options: Any) -> Any:
            self.now += 1.0
            return step(*arguments, **options)

        def pull_back(*arguments: Any) -> Any:
            self.now += back
            return pull(*arguments)

        monkeypatch.setattr(ReverseSweep, "differentiable_step", differentiable_step)
        monkeypatch.setattr(ReverseSweep, "pull_back", pull_back)
        monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("back", [0.25, 2.0])
def test_a_step_back_is_a_step_and_the_way_through_it(back: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(TensorTask(mlp, images(20, "train"), images(8, "val"), batch_size=10), BUCKETS)
    clock = Clock(monkeypatch, back)
    assert rehearsal.cost_of_way_back(problem) == 1.0 + back
    assert clock.now <= rehearsal.PLAIN_STEPS  # by its products a step back takes 3


def test_the_search_does_not_notice() -> None:
    problem = make_problem(TensorTask(mlp, images(20, "train"), images(8, "val"), batch_size=10), BUCKETS)
    run = InnerRun(problem, flat(BUCKETS), 0, 4)
    before = estimate_reverse(run)
    rehearsal.cost_of_way_back(problem)
    after = estimate_reverse(run)
    assert (after.hypergradients, after.val_loss) == (before.hypergradients, before.val_loss)
