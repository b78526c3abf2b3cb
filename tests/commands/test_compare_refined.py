"""The schedule refined from one run's gradient norms: its closed form, the norms, and the search."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
import torch
from comparing import HORIZON, comparison_job, rates, run, small_problem, trials_of
from problems import image_task, make_problem, mlp, regression_task
from torch.nn import functional as F

from fds_dist.commands.compare.rivals import RIVALS
from fds_dist.commands.compare.rivals.refined import NormRecorder, Shape, refined_factors
from fds_dist.inner.plain_run import plain_run


@pytest.mark.parametrize("power", [-2, -1])
def test_equal_gradient_norms_refine_to_the_linear_decay(power: int) -> None:
    factors = refined_factors([3.0] * 50, power)
    # 1e-13: sums of 50 equal terms.
    assert factors == pytest.approx([(49 - step) / 49 for step in range(50)], rel=1e-13)
    assert factors[-1] == 0.0


def test_the_refined_schedule_is_each_weight_times_the_sum_of_the_later_ones() -> None:
    norms = [4, 2, 1, 1, 2, 5, 10]  # so few that the median is over one
    weights = [Fraction(1, norm**2) for norm in norms]
    products = [weight * sum(weights[step + 1 :]) for step, weight in enumerate(weights)]
    expected = [float(product / max(products)) for product in products]
    assert refined_factors(norms, -2) == pytest.approx(expected, rel=1e-14)
    assert max(range(7), key=refined_factors(norms, -2).__getitem__) == 2  # it warms up, and falls to zero


def test_an_outlier_among_the_norms_changes_nothing_and_zeros_leave_it_finite() -> None:
    calm, spiky = [2.0] * 60, [2.0] * 60
    spiky[30] = 1e9
    assert refined_factors(spiky, -2) == refined_factors(calm, -2)
    assert all(map(math.isfinite, refined_factors([1.0] * 10 + [0.0] * 10, -2)))
    assert all(map(math.isfinite, refined_factors([0.0] * 20, -1)))


@pytest.mark.parametrize("order", [1, 2])
def test_recorded_norms_are_those_of_plain_gradients(order: int) -> None:
    problem = make_problem(image_task(mlp), {"lr": [0.1]})
    recorder = NormRecorder(problem.optimizer, order)
    outcome = plain_run(replace(problem, optimizer=recorder), [0.1], 0, HORIZON)
    assert outcome == replace(plain_run(problem, [0.1], 0, HORIZON), seconds=outcome.seconds)
    module, expected = problem.module(0).double(), []
    for batch in islice(problem.batches(0), HORIZON):
        module.zero_grad()
        F.cross_entropy(module(batch[0]), batch[1]).backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]).norm(order).item())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    assert torch.stack(recorder.norms).tolist() == pytest.approx(expected, rel=1e-12)  # float64, ten steps


def test_refining_tunes_a_linear_decay_then_what_follows_from_its_best_run(tmp_path: Path) -> None:
    problem = small_problem()
    result = run(tmp_path, problem, methods=["refined"], budget=12 * HORIZON)
    trials = trials_of(tmp_path, "refined")
    assert [trial.number for trial in trials] == list(range(12)) and result.runs[0].cost == 12 * HORIZON
    (measured,) = [trial for trial in trials if "factors" in trial.state]
    base = min(trials[:6], key=lambda trial: trial.val_loss)
    assert measured.number == 6 and measured.values == base.values
    for trial in trials:
        recipe = RIVALS["refined"].recipe(comparison_job(problem), trials, trial)
        assert isinstance(recipe, Shape) == (trial.number > 6)
        # The loss in the record is that of the run which the judges train.
        assert (
            plain_run(*recipe.setting(problem, HORIZON, trial.values), trial.number, HORIZON).val.loss == trial.val_loss
        )
    peak = trials[7].values[1]
    shape = RIVALS["refined"].recipe(comparison_job(problem), trials, trials[7])
    assert rates(shape.setting(problem, HORIZON, trials[7].values), HORIZON) == pytest.approx(
        [peak * factor for factor in measured.state["factors"]], rel=1e-15
    )
    answer = result.runs[0].answer
    assert answer is not None and ("warmup" in answer.hyperparameters) == (answer.number <= 6)


def test_refining_that_cannot_begin_says_why(tmp_path: Path) -> None:
    few = run(tmp_path / "few", methods=["refined"], budget=HORIZON)
    assert few.runs[0].note == "the budget is spent before a schedule can be refined"
    exploding = make_problem(regression_task(), {"lr": [1e200]})
    lost = run(tmp_path / "lost", exploding, methods=["refined"], budget=40, ranges={"lr": [1e200, 1e250]})
    assert lost.runs[0].note == "no run with a linear decay ended with a finite loss"
