"""What FDS answers at the end of its search in a comparison, and what the choice of it costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from comparing import HORIZON, Interrupting, comparable, comparison_job, small_problem, trials_of

from fds_dist.commands.compare.comparison import compare
from fds_dist.commands.compare.results import Comparison
from fds_dist.commands.compare.rivals.answer import SELECTION
from fds_dist.inner.plain_run import plain_run
from fds_dist.inner.problem import Problem
from fds_dist.outer.judge import repetition
from fds_dist.outer.progress import OuterProgress, OuterSettings

STEPS = 3


def searched(
    folder: Path, problem: Problem | None = None, average: int = 1, judge_seeds: int = 0, **more: Any
) -> Comparison:
    """A search by FDS with three outer steps and an answer."""
    job = comparison_job(problem or small_problem(), methods=["fds"], seeds=1, judge_seeds=1, **more)
    settings = OuterSettings((HORIZON,) * STEPS)
    return compare(replace(job, settings=settings, average=average, judge_seeds=judge_seeds), folder)


def test_the_answer_is_the_mean_of_the_last_values_trained_once(tmp_path: Path) -> None:
    (search,) = searched(tmp_path, average=2).runs
    *steps, answer = trials_of(tmp_path, "fds")
    last = OuterProgress.from_dict(steps[-1].state).values
    # On linear scales the mean is that of the values. 1e-15: a rounding or two.
    assert answer.values == pytest.approx([fmean(pair) for pair in zip(steps[-1].values, last, strict=True)], rel=1e-15)
    assert answer.cost == HORIZON and answer.state == {"result": "average"} and len(steps) == STEPS
    assert answer.val_loss == plain_run(repetition(small_problem(), SELECTION), answer.values, 0, HORIZON).val.loss
    assert search.answer is not None and search.answer.number == STEPS  # whatever the losses before
    assert search.answer.own_loss == answer.val_loss and search.cost == sum(step.cost for step in steps) + HORIZON


def test_a_judging_chooses_among_the_candidates_on_seeds_of_its_own(tmp_path: Path) -> None:
    (search,) = searched(tmp_path, average=2, judge_seeds=2).runs
    *steps, answer = trials_of(tmp_path, "fds")
    progress = OuterProgress.from_dict(steps[-1].state)
    assert progress.best is not None
    rows = [steps[-1].values, progress.values]
    average = [fmean(pair) for pair in zip(*rows, strict=True)]
    problem = repetition(small_problem(), SELECTION)

    def judged(values: list[float]) -> float:
        return fmean(plain_run(problem, values, seed, HORIZON).val.loss for seed in range(2))

    losses = [judged(values) for values in (average, progress.best[1], progress.values)]
    assert answer.val_loss == pytest.approx(min(losses), rel=1e-12)  # the mean on the scale may differ in the last bit
    assert answer.cost == len({*map(tuple, (average, progress.best[1], progress.values))}) * 2 * HORIZON
    assert search.answer is not None and search.answer.own_loss == answer.val_loss


def test_a_short_budget_judges_on_fewer_seeds_or_not_at_all(tmp_path: Path) -> None:
    steps = 3 * (10 + 2 * (10 + 5) + 2 * 10)
    searched(tmp_path / "one", average=2, judge_seeds=3, budget=steps + 5 * HORIZON)
    assert trials_of(tmp_path / "one", "fds")[-1].cost <= 5 * HORIZON
    (search,) = searched(tmp_path / "none", average=2, judge_seeds=3, budget=steps).runs
    assert search.trials == STEPS
    assert searched(tmp_path / "full", average=2, judge_seeds=3).budget == steps + 9 * HORIZON  # three candidates


def test_an_answered_search_is_over_and_an_interrupted_one_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"average": 2, "judge_seeds": 2}
    expected = searched(tmp_path / "at once", **options)
    assert comparable(searched(tmp_path / "at once", **options)) == comparable(expected)
    problem = replace(small_problem(), build_model=Interrupting(after=14))
    results, starts = [], 0
    while not results and starts < 30:
        starts += 1
        with suppress(KeyboardInterrupt):
            results.append(searched(tmp_path / "in parts", problem, **options))
    assert starts > 1
    assert comparable(results[0]) == comparable(expected)
