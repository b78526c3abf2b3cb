"""The outer loop around real inner runs: divergence, early stop, and what is recorded and saved."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from problems import ONE_RANK, Buckets, TensorTask, image_task, make_problem, mlp, regression_task

from fds_dist.inner.estimators import Estimate, estimate_forward, estimate_reverse
from fds_dist.inner.monitor import Consistency, StepMonitor
from fds_dist.inner.plan import Plan
from fds_dist.outer.loop import HypergradientsNotFinite, OuterListener, OuterLoop
from fds_dist.outer.progress import OuterProgress, OuterSettings, initial_progress
from fds_dist.outer.rules import SignRule
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.records import InnerBlock, OuterRecord
from fds_dist.tracking.trackers import Tracker, Trackers


class Recorder(Tracker):
    """Keeps what it is told."""

    required = True

    def __init__(self) -> None:
        self.blocks: list[InnerBlock] = []
        self.records: list[OuterRecord] = []
        self.notes: list[str] = []

    def inner(self, block: InnerBlock) -> None:
        self.blocks.append(block)

    def outer(self, record: OuterRecord) -> None:
        self.records.append(record)

    def note(self, message: str) -> None:
        self.notes.append(message)


class Loop(OuterListener):
    """An outer loop over a small problem, and all that it tells and saves."""

    def __init__(self, task: TensorTask, buckets: Buckets, epochs: tuple[float, ...], **options: Any) -> None:
        rule = options.pop("rule", SignRule())
        estimator = options.pop("estimator", estimate_forward)
        settings = OuterSettings(tuple(round(length * task.steps_per_epoch) for length in epochs), **options)
        self.told, self.saved = Recorder(), list[OuterProgress]()
        problem = make_problem(task, buckets)
        self.trackers = Trackers([self.told])
        self.first = initial_progress(problem, rule, settings)
        self.loop = OuterLoop(problem, estimator, rule, settings, ONE_RANK, self.trackers, self)

    def monitor(self, outer_step: int, schedule: Schedule, plan: Plan) -> StepMonitor:
        return StepMonitor(outer_step, schedule, plan, ONE_RANK, self.trackers.inner, Consistency())

    def save(self, progress: OuterProgress) -> None:
        self.saved.append(progress)

    def run(self) -> OuterProgress:
        return self.loop.run(self.first)


DIVERGING = {"lr": [1e6], "momentum": [0.5]}


@pytest.mark.parametrize("estimator", [estimate_forward, estimate_reverse])
def test_a_diverging_run_ends_early_keeps_values_and_halves_steps(estimator: Any) -> None:
    outer = Loop(regression_task(), DIVERGING, (200.0,), estimator=estimator)  # of 1,000 inner steps
    progress = outer.run()
    assert progress.values == [1e6, 0.5]
    assert progress.state.steps == (0.05, 0.05)
    assert progress.best is None
    assert not progress.converged
    assert outer.told.blocks[-1].steps.stop < 500
    (record,) = outer.told.records
    assert not any(math.isfinite(value) for row in record.hypergradients.values() for value in row)
    assert "lr[0] stays 1e+06, momentum[0] stays 0.5" in record.events[0]
    assert outer.told.notes == [f"outer step 0: {record.events[0]}"]


@pytest.mark.parametrize("patience", [1, 3])
def test_too_many_lost_runs_in_a_row_end_the_search(patience: int) -> None:
    outer = Loop(regression_task(), DIVERGING, (20.0,) * 10, nonfinite_patience=patience)
    with pytest.raises(HypergradientsNotFinite, match=rf"^{patience} outer steps in a row.*lower the learning rate"):
        outer.run()
    assert len(outer.told.records) == patience
    last = outer.saved[-1]  # what a person resumes from
    assert last.outer_step == patience
    assert last.values == [1e6, 0.5]
    assert last.state.steps == (0.1 / 2**patience,) * 2


def test_a_finite_run_in_between_makes_patience_start_anew() -> None:
    lost = iter([True, True, False, True, True, False])

    def sometimes_lost(*arguments: Any) -> Estimate:
        return Estimate([math.nan, math.nan] if next(lost) else [1.0, -1.0], 1.0, None)

    outer = Loop(image_task(mlp), {"lr": [0.5, 0.5]}, (1.0,) * 6, estimator=sometimes_lost, nonfinite_patience=3)
    progress = outer.run()
    assert progress.outer_step == 6
    # Halved twice before the first move and twice more before the second.
    assert progress.values == pytest.approx([0.5 - 0.025 - 0.00625, 0.5 + 0.025 + 0.00625])


def test_an_early_stop_keeps_the_schedule_that_it_stopped_at() -> None:
    def rising(*arguments: Any) -> Estimate:
        return Estimate([-1.0], 1.0, 0.5)

    # The sign never flips, so the step stays 0.1, which is below the tolerance once lr is above 0.4.
    rule = SignRule(tolerance=0.25)
    outer = Loop(image_task(mlp), {"lr": [0.25]}, (1.0, 2.0, 3.0, 4.0), rule=rule, estimator=rising)
    progress = outer.run()
    assert progress.converged
    assert progress.outer_step == 2
    assert progress.values == pytest.approx([0.45])
    schedule = outer.loop.schedule(progress.values, progress.horizon)
    assert schedule.horizon == 10  # of the second outer step: 2 epochs of 5 steps
    assert schedule.values == {"lr": tuple(progress.values)}
    assert outer.told.records[-1].events == ["every step is below the tolerance: the search ends here"]
    assert outer.loop.run(progress) == progress  # resuming a search that has ended does nothing


def test_a_search_is_the_same_when_it_is_resumed_from_any_save() -> None:
    buckets = {"lr": [0.05, 0.05], "momentum": [0.3]}
    whole = Loop(image_task(mlp), buckets, (1.0, 2.0, 1.0))
    last = whole.run()
    assert [progress.outer_step for progress in whole.saved] == [1, 2, 3]
    for saved in whole.saved:
        content = json.loads(json.dumps(saved.to_dict()))
        resumed = Loop(image_task(mlp), buckets, (1.0, 2.0, 1.0))
        assert resumed.loop.run(OuterProgress.from_dict(content)) == last


def test_records_hold_the_values_trained_with_and_the_best_is_kept() -> None:
    buckets = {"lr": [0.05, 0.05], "momentum": [0.3]}
    outer = Loop(image_task(mlp), buckets, (1.0, 2.0, 4.0))
    progress = outer.run()
    records = outer.told.records
    assert [record.horizon for record in records] == [5, 10, 20]
    assert records[0].hyperparameters == {"lr": [0.05, 0.05], "momentum": [0.3]}
    for before, after in zip(outer.saved, records[1:], strict=False):
        assert outer.loop.problem.space.unpack(before.values) == after.hyperparameters
    best = min(records, key=lambda record: record.val_loss)
    assert progress.best is not None
    assert progress.best[0] == best.outer_step
    assert progress.best[2] == best.val_loss
    assert outer.loop.problem.space.unpack(progress.best[1]) == best.hyperparameters


def test_inner_blocks_cover_each_horizon_without_gaps() -> None:
    outer = Loop(image_task(mlp), {"lr": [0.1] * 3}, (1.0, 30.0))
    outer.run()
    for outer_step, horizon in ((0, 5), (1, 150)):
        blocks = [block for block in outer.told.blocks if block.outer_step == outer_step]
        assert [step for block in blocks for step in block.steps] == list(range(horizon))
        assert len(blocks) <= 100  # each costs one synchronization with the device
        assert all(math.isfinite(block.train_loss) for block in blocks)
        assert [block.live_tangents for block in blocks][-1] == 3
        assert blocks[0].live_tangents == 1


def test_a_start_that_works_is_left_although_later_runs_seem_worse_by_some_noise() -> None:
    """The losses are played back: within a quarter of the best one a run has not diverged."""
    played = iter([1.0, 1.2, 1.3, 1.0])
    estimator: Any = lambda run: Estimate([-1.0], next(played), None)  # noqa: E731
    loop = Loop(image_task(mlp), {"lr": [0.1]}, (1.0,) * 4, estimator=estimator, retreat=True)
    loop.run()
    assert [bool(record.events) for record in loop.told.records] == [False, False, True, False]


@pytest.mark.parametrize("end", [math.inf, math.nan, 3.0])
def test_a_run_that_ends_worse_than_the_first_leads_back_to_the_best_where_that_is_asked_for(end: float) -> None:
    """The losses are played back, with hypergradients that always ask for a larger learning rate."""
    played = iter([2.0, 1.0, end, 1.5])

    def playback(*_: Any) -> Estimate:
        return Estimate([-1.0], next(played), None)

    loop = Loop(image_task(mlp), {"lr": [0.1]}, (1.0,) * 4, estimator=playback, retreat=True)
    loop.run()
    step = loop.told.records[0].step_sizes["lr"][0]
    values = [record.hyperparameters["lr"][0] for record in loop.told.records]
    best = values[1]
    assert values[2] == pytest.approx(best + step)
    assert values[3] == best
    assert loop.saved[-1].values[0] == pytest.approx(best + step / 2)
    assert [bool(record.events) for record in loop.told.records] == [False, False, True, False]
