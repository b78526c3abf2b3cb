"""The searches themselves: costs, budgets, fresh seeds, resumption, and what they find."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from comparing import (
    BUCKETS,
    HORIZON,
    Interrupting,
    comparable,
    run,
    seeded_builder,
    small_problem,
    trials_of,
)
from problems import ONE_RANK, conv_bn, image_task, make_problem, mlp, regression_task
from torch import Tensor, nn

from fds_dist.commands.compare.comparison import compare
from fds_dist.commands.compare.job import Job
from fds_dist.commands.compare.results import Comparison
from fds_dist.commands.compare.rivals import RIVALS
from fds_dist.common.faults import UserError
from fds_dist.config.compare import CompareConfig
from fds_dist.inner.estimate import validate
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plain_run import plain_run
from fds_dist.inner.plan import estimator_cost, make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.outer.judge import RenumberedTask
from fds_dist.outer.progress import OuterSettings
from fds_dist.outer.rules import SignRule
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.step import Pruning
from fds_dist.tasks.base import Task
from fds_dist.tasks.synthetic import synthetic

FORWARD_COST = 10 + 2 * (10 + 5) + 2 * 10
"""One outer step on `BUCKETS`: the run, lr's two tangents (the second lives for half of it), and momentum's."""


def test_forward_mode_is_charged_by_its_live_tangents() -> None:
    problem = small_problem()
    plan = make_plan(problem.space.starts(HORIZON), HORIZON, 1)
    assert estimator_cost("forward", problem, HORIZON) == FORWARD_COST == plan.cost(0)


def test_pruned_tangents_are_not_charged() -> None:
    # Of each window of 5 steps one is kept, of momentum's 10 two: lr's tangents take 1 + 2 steps, momentum's 2.
    pruned = small_problem(pruning=Pruning("alternate", 0.8))
    assert estimator_cost("forward", pruned, HORIZON) == 10 + 2 * (1 + 2) + 2 * 2


def test_reverse_mode_costs_the_same_for_any_number_of_hyperparameters() -> None:
    assert estimator_cost("reverse", small_problem(), HORIZON) == 4 * HORIZON


def test_greedy_is_charged_for_validation_gradients_and_for_its_memory() -> None:
    assert estimator_cost("greedy", small_problem(), HORIZON) == 2 * HORIZON
    assert estimator_cost("greedy", small_problem(), HORIZON, 0.9) == (2 + 2 * 2) * HORIZON  # lr and momentum


def test_a_plain_run_is_the_run_of_the_gradient_methods() -> None:
    problem = replace(make_problem(image_task(conv_bn), BUCKETS), build_model=partial(seeded_builder, conv_bn))
    values = [0.1, 0.05, 0.5]
    network = problem.network(3)
    training, _ = run_horizon(InnerRun(problem, values, 3, HORIZON), (0, 1, 2))
    expected = validate(problem, network, training.state, 3)
    outcome = plain_run(problem, values, 3, HORIZON, rungs=(4,))
    # 1e-12: float64, with another order of operations in the gradient alone.
    assert outcome.val.loss == pytest.approx(expected.loss, rel=1e-12)
    assert (outcome.val.accuracy, outcome.steps, outcome.test) == (expected.accuracy, HORIZON, None)


def test_a_plain_run_ends_where_a_rung_says_so_and_where_it_diverges() -> None:
    problem, asked = small_problem(), []

    def at_rung(loss: float | None) -> bool:
        asked.append(loss)
        return len(asked) < 2

    pruned = plain_run(problem, [0.1, 0.1, 0.1], 0, HORIZON, (2, 4, 6), at_rung)
    assert pruned.steps == 4 and pruned.val.loss == asked[1]
    assert asked[2:] == [None]  # other ranks may still come to the last rung

    exploding = make_problem(regression_task(), BUCKETS)
    lost = plain_run(exploding, [1e80, 1e80, 0.1], 0, HORIZON)
    assert lost.steps < HORIZON and lost.val.loss == float("inf")


def test_every_method_spends_as_much_as_fds_and_no_more(tmp_path: Path) -> None:
    methods = [method for method in RIVALS if method != "schedule_free"]  # which needs a package
    result = run(tmp_path, methods=methods)
    assert result.budget == 2 * FORWARD_COST and result.horizon == HORIZON
    assert result.methods == methods
    for search in result.runs:
        # What is left would not pay for the next outer step or run.
        step = {"fds": FORWARD_COST, "greedy": 2 * HORIZON}.get(search.method, HORIZON)
        assert result.budget - step < search.cost <= result.budget
        trials = trials_of(tmp_path, search.method)
        assert [trial.number for trial in trials] == list(range(search.trials))
        assert sum(trial.cost for trial in trials) == search.cost
        assert all(trial.cost == trial.steps for trial in trials if search.method not in ("fds", "greedy"))
    pruned = {trial.steps for method in ("hyperband", "bohb") for trial in trials_of(tmp_path, method)}
    assert pruned == {1, 3, HORIZON}  # a ninth and three ninths of the horizon


def test_a_larger_budget_goes_on_and_a_smaller_one_looks_back(tmp_path: Path) -> None:
    methods: dict[str, Any] = {"methods": ["fds", "tpe"]}
    small = run(tmp_path, **methods, budget=90)
    assert [(search.trials, search.cost) for search in small.runs] == [(1, 60), (9, 90)]
    large = run(tmp_path, **methods, budget=150)
    assert [(search.trials, search.cost) for search in large.runs] == [(2, 120), (15, 150)]
    assert comparable(run(tmp_path, **methods, budget=90)) == comparable(small)
    assert comparable(run(tmp_path / "at once", **methods, budget=150)) == comparable(large)


def test_an_interrupted_comparison_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["fds", "greedy", "bohb"], "seeds": 2, "budget": 120, "steps": 3}
    expected = run(tmp_path / "at once", **options)
    problem = replace(small_problem(), build_model=Interrupting(after=11))
    results, starts = [], 0
    while not results and starts < 30:
        starts += 1
        with suppress(KeyboardInterrupt):
            results.append(run(tmp_path / "in parts", problem, **options))
    assert starts > 5  # interrupted in searches and while judging
    assert comparable(results[0]) == comparable(expected)


@dataclass
class Listening:
    """A task that notes the outer steps it is asked for."""

    task: Task
    asked: list[int] = field(default_factory=list)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append(outer_step)
        return iter(self.task.train_batches(outer_step, epoch))

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append(outer_step)
        return iter(self.task.val_batches(outer_step))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def test_judges_and_repetitions_share_neither_splits_nor_weights(tmp_path: Path) -> None:
    task, seeds = Listening(image_task(mlp)), []

    def build(seed: int) -> nn.Module:
        seeds.append(seed)
        return seeded_builder(mlp, seed)

    marks: list[tuple[str, int, int]] = []
    run(
        tmp_path,
        replace(small_problem(), task=task, build_model=build),
        methods=["fds", "random"],
        seeds=2,
        judge_seeds=2,
        say=lambda line: marks.append((line, len(task.asked), len(seeds))),
    )
    _, asked_first, built_first = next(mark for mark in marks if "random, repetition 0: ended" in mark[0])
    _, asked_last, built_last = next(mark for mark in marks if mark[0].startswith("judging"))
    parts = [
        (set(task.asked[:asked_first]), set(seeds[:built_first])),
        (set(task.asked[asked_first:asked_last]), set(seeds[built_first:built_last])),
        (set(task.asked[asked_last:]), set(seeds[built_last:])),
    ]
    assert len(parts[2][0]) == len(parts[2][1]) == 2  # judges' seeds
    for first in range(3):
        for second in range(first):
            assert parts[first][0].isdisjoint(parts[second][0]) and parts[first][1].isdisjoint(parts[second][1])


def test_a_renumbered_task_keeps_its_optional_parts() -> None:
    task = RenumberedTask(synthetic(), 1000)
    assert task.input_shape == (10,) and not hasattr(task, "val_loss")


def quadratic() -> Problem:
    """Learning to reach a known optimum: the validation loss as a function of lr has one minimum, near lr 1."""
    task = synthetic(dimension=4, samples=8, steps_per_epoch=5, condition=4.0, seed=1)
    task.val_optimum = task.optimum
    task._val = task._train  # so that the best step size is one of the training loss alone
    return make_problem(task, {"lr": [1e-4]})


@pytest.mark.parametrize("method", ["random", "tpe", "hyperband"])
def test_black_boxes_find_the_optimum_of_a_quadratic(tmp_path: Path, method: str) -> None:
    problem = quadratic()
    grid = [0.01 * number for number in range(1, 200)]
    losses = {lr: plain_run(problem, [lr], 0, HORIZON).val.loss for lr in grid[9::10]}
    start = plain_run(problem, [1e-4], 0, HORIZON).val.loss
    result = run(tmp_path, problem, methods=[method], budget=30 * HORIZON, ranges={"lr": [1e-4, 2.0]})
    best = result.runs[0].answer
    assert best is not None
    # 30 runs on a log scale leave less than a thousandth of the way from the start to the optimum.
    assert best.own_loss < min(losses.values()) + 1e-3 * (start - min(losses.values()))
    assert best.judged_loss == pytest.approx(best.own_loss, rel=1e-12)  # this task has no randomness to be lucky with


def test_suggestions_stay_in_their_ranges(tmp_path: Path) -> None:
    ranges = {"lr": [0.02, 0.05], "momentum": [0.3, 0.6]}
    run(tmp_path, methods=["random", "tpe"], budget=20 * HORIZON, ranges=ranges)
    for method in ("random", "tpe"):
        trials = trials_of(tmp_path, method)
        assert len(trials) == 20
        for low, high, values in ((0.02, 0.05, "lr"), (0.3, 0.6, "momentum")):
            columns = (0, 1) if values == "lr" else (2,)
            drawn = [trial.values[column] for trial in trials for column in columns]
            assert all(low <= value <= high for value in drawn)
            # 20 and more draws that all lay in one half would be no search; a fair coin does that once in 10^6.
            assert min(drawn) < (low + high) / 2 < max(drawn)


def test_runs_that_diverge_are_infinitely_bad_and_nothing_breaks(tmp_path: Path) -> None:
    problem = make_problem(regression_task(), {"lr": [1e200], "momentum": [0.5]})
    options = CompareConfig.model_validate(
        {"methods": ["fds", "tpe", "bohb"], "seeds": 1, "budget": 100, "ranges": {"lr": [1e200, 1e250]}}
    )
    settings = OuterSettings((HORIZON,) * 4, nonfinite_patience=2)
    job = Job(problem, SignRule(), settings, "forward", options, ONE_RANK)
    result = compare(job, tmp_path)
    fds, tpe, bohb = result.runs
    assert fds.trials == 2 and "not finite" in fds.note
    assert tpe.trials >= 10 and bohb.trials >= 10  # they ended early, and were charged for what they trained
    assert all(trial.val_loss == float("inf") for trial in trials_of(tmp_path, "bohb"))
    assert [search.answer for search in result.runs] == [None] * 3
    again = compare(job, tmp_path)
    assert comparable(again) == comparable(result)
    assert Comparison.load(tmp_path) == again


def test_retraining_is_asked_for_once_per_answer(tmp_path: Path) -> None:
    asked: list[tuple[Schedule, Path]] = []

    def retrain(schedule: Schedule, folder: Path) -> list[float]:
        asked.append((schedule, folder))
        return [0.125, 0.375]

    options: dict[str, Any] = {"methods": ["random"], "seeds": 2, "budget": 30, "retrain": retrain, "retrain_seeds": 2}
    result = run(tmp_path, **options)
    assert [search.test_accuracy for search in result.runs] == [0.25, 0.25]
    assert comparable(run(tmp_path, **options)) == comparable(result)
    assert [folder for _, folder in asked] == [tmp_path / "random" / f"retrained-{index}" for index in (0, 1)]
    for (schedule, _), search in zip(asked, result.runs, strict=True):
        assert search.answer is not None
        assert {name: list(row) for name, row in schedule.values.items()} == search.answer.hyperparameters
        assert schedule.horizon == HORIZON and schedule.optimizer["name"] == "sgd"


def test_a_folder_belongs_to_one_comparison(tmp_path: Path) -> None:
    run(tmp_path, methods=["random"], budget=20)
    with pytest.raises(UserError) as raised:
        run(tmp_path, replace(small_problem(), seed=1), methods=["random"], budget=20, scale="linear")
    assert [fault.key for fault in raised.value.faults] == ["compare.ranges", "seed"]


def test_a_budget_below_one_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compare\.budget: 9 is out of range; expected at least one run: 10"):
        run(tmp_path, methods=["random"], budget=9)


def test_without_optuna_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'fds-dist\[search\]'"):
        run(tmp_path, methods=["fds", "tpe"])
    assert run(tmp_path, methods=["fds"]).runs[0].trials == 2


def test_losses_in_the_file_add_up(tmp_path: Path) -> None:
    """What a stranger computes from `compare.json` alone is what we say."""
    run(tmp_path, methods=["random"], budget=100, judge_seeds=3)
    (search,) = json.loads((tmp_path / "compare.json").read_text())["runs"]
    own = [best["own_loss"] for best in search["incumbents"]]
    assert own == sorted(own, reverse=True) == list(accumulate(own, min))
    judged: Sequence[float] = [judgement["val_loss"] for judgement in search["incumbents"][-1]["judgements"]]
    assert len(judged) == 3 and len(set(judged)) == 3
    assert search["incumbents"][-1]["judged_loss"] == pytest.approx(sum(judged) / 3, rel=1e-12)
