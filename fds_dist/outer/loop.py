"""The outer loop: an inner run, its hypergradients, a step of the hyperparameters, and again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from fds_dist.common.interruptions import asked_to_end
from fds_dist.common.memory import own_peak_bytes
from fds_dist.common.values import few
from fds_dist.distributed.endings import end_together
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimators import Estimate, Estimator
from fds_dist.inner.plan import Plan, make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, OnStep, RunCheckpointer, go_on
from fds_dist.inner.split_check import check_batches, check_split
from fds_dist.outer.progress import OuterProgress, OuterSettings
from fds_dist.outer.replicas import mean_over_replicas, run_number
from fds_dist.outer.rules import OuterRule, OuterStep
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.trackers import Trackers


class HypergradientsNotFinite(RuntimeError):
    """Too many outer steps in a row gave a hypergradient that is not finite."""


class RankReport(NamedTuple):
    """What one rank tells all others after an outer step."""

    seconds: float
    busy_seconds: float
    """The part of `seconds` in which the rank did not wait for others."""
    peak_bytes: int
    asked_to_end: bool
    """Whether a signal has asked it to end."""


class OuterListener:
    """Follows an outer loop; called alike on every rank."""

    def monitor(self, outer_step: int, schedule: Schedule, plan: Plan) -> OnStep:
        """The function that is called after each step of the inner run of `outer_step`."""
        return go_on

    def checkpointer(self, outer_step: int, values: Sequence[float], horizon: int) -> RunCheckpointer | None:
        """The object that saves the inner run of `outer_step` at λ = `values` [K]; None: it is not saved."""
        return None

    def estimated(self, outer_step: int, estimate: Estimate) -> None:
        """Called with this rank's estimate, before that of rank 0 takes its place."""

    def save(self, progress: OuterProgress) -> None:
        """Called after each outer step."""

    def done(self, record: OuterRecord) -> None:
        """Called after `save`, with what the trackers have received."""


@dataclass(frozen=True)
class OuterLoop:
    """The outer loop with everything it needs. `run` continues from any progress."""

    problem: Problem
    estimator: Estimator
    rule: OuterRule
    settings: OuterSettings
    ranks: Ranks
    trackers: Trackers
    listener: OuterListener

    def run(self, progress: OuterProgress) -> OuterProgress:
        """Runs outer steps until all are done, or there is another reason for `OuterSettings.ending`.

        Raises:
            HypergradientsNotFinite: after `nonfinite_patience` bad outer steps in a row, which `listener` has saved.
        """
        while progress.outer_step < len(self.settings.horizons) and not self.settings.ending(progress):
            progress = self.outer_step(progress)
            if progress.state.failures >= self.settings.nonfinite_patience:
                raise HypergradientsNotFinite(
                    f"{progress.state.failures} outer steps in a row had hypergradients that are not finite. "
                    "The inner run diverges: lower the learning rate (hyperparameters.lr.init, .step or .max), "
                    "clip the gradient (inner.clip_gradient) or use dtype=float64"
                )
        return progress

    def outer_step(self, progress: OuterProgress) -> OuterProgress:
        """Runs one outer step: inner run, hypergradients, update, record.

        Raises:
            KeyboardInterrupt, RankLost: see `end_together`, on all ranks, after the outer step is saved, where a
                signal has asked one of them to end.
        """
        began, waited = time.perf_counter(), self.ranks.waited
        number, values = progress.outer_step, progress.values
        horizon = self.settings.horizons[number]
        plan = make_plan(self.problem.space.starts(horizon), horizon, self.ranks.shape.tangent)
        run = InnerRun(
            self.problem,
            values,
            run_number(number, self.ranks),
            horizon,
            self.ranks,
            self.listener.monitor(number, self.schedule(values, horizon), plan),
            self.listener.checkpointer(number, values, horizon),
            lambda text: self.trackers.note(f"outer step {number}: {text}"),
        )
        check_batches(self.problem, run.number, self.ranks.data)
        if number == 0:
            check_split(run)
        estimate = self._estimate(run, number)
        reports = self._reports(time.perf_counter() - began, self.ranks.waited - waited)
        step, retreated = self.next_values(progress, estimate)
        best, first_val_loss = progress.best, progress.first_val_loss
        if number == 0 and math.isfinite(estimate.val_loss):
            first_val_loss = estimate.val_loss
        if math.isfinite(estimate.val_loss) and (best is None or estimate.val_loss < best[2]):
            best = (number, list(values), estimate.val_loss, estimate.val_accuracy)
        after = replace(
            progress,
            outer_step=number + 1,
            values=step.values,
            state=step.state,
            horizon=horizon,
            converged=step.converged,
            best=best,
            first_val_loss=first_val_loss,
            seconds=progress.seconds + reports[0].seconds,
        )
        record = self._record(progress, estimate, after, self._events(values, step, retreated), reports)
        self.listener.save(after)
        self.listener.done(record)
        if any(report.asked_to_end for report in reports):
            end_together(self.ranks, f"outer step {number} is saved")
        return after

    def _estimate(self, run: InnerRun, number: int) -> Estimate:
        """The mean over the replicas. Rounding may differ between ranks, on GPUs above all: one rank's numbers decide
        alike on all."""
        estimate = self.estimator(run)
        self.listener.estimated(number, estimate)
        return self.ranks.broadcast_object(mean_over_replicas(estimate, self.ranks))

    def _reports(self, seconds: float, waited: float) -> list[RankReport]:
        """Of each rank, in the order of the ranks."""
        peak = own_peak_bytes(self.ranks.device)
        return self.ranks.gather_objects(RankReport(seconds, seconds - waited, peak, asked_to_end()))

    def next_values(self, progress: OuterProgress, estimate: Estimate) -> tuple[OuterStep, bool]:
        """The rule's step along the hypergradients, or a retreat to the best λ if the inner run diverged."""
        if self.settings.retreat and progress.diverged(estimate.val_loss) and progress.best is not None:
            return self.rule.retreat(progress.best[1], estimate.hypergradients, progress.state), True
        return self.rule.update(self.problem.space, progress.values, estimate.hypergradients, progress.state), False

    def schedule(self, values: Sequence[float], horizon: int) -> Schedule:
        """λ as a schedule that names its optimizer."""
        return self.problem.space.schedule(values, horizon, self.problem.optimizer_info)

    def _events(self, values: Sequence[float], step: OuterStep, retreated: bool) -> list[str]:
        events = ["the inner run diverged: back to the best values, with half the steps"] if retreated else []
        if step.non_finite:
            elements = self.problem.space.elements
            unchanged = few(f"{elements[index]} stays {values[index]:.4g}" for index in step.non_finite)
            events.append(f"hypergradients that are not finite: {unchanged}; their steps are halved")
        if step.converged:
            events.append("every step is below the tolerance: the search ends here")
        return events

    def _record(
        self,
        before: OuterProgress,
        estimate: Estimate,
        after: OuterProgress,
        events: list[str],
        reports: Sequence[RankReport],
    ) -> OuterRecord:
        """Tells the trackers what the outer step did."""
        unpack = self.problem.space.unpack
        record = OuterRecord(
            outer_step=before.outer_step,
            horizon=after.horizon,
            hyperparameters=unpack(before.values),
            hypergradients=unpack(estimate.hypergradients),
            val_loss=estimate.val_loss,
            val_accuracy=estimate.val_accuracy,
            metrics=estimate.metrics or None,
            seconds=reports[0].seconds,
            world_size=self.ranks.world_size,
            step_sizes=unpack(after.state.steps),
            hypergradient_spread=None if estimate.spread is None else unpack(estimate.spread),
            events=events,
            rank_seconds=[report.busy_seconds for report in reports],
            rank_peak_bytes=[report.peak_bytes for report in reports],
        )
        self.ranks.on_each(partial(self.trackers.outer, record))
        for event in events:
            self.trackers.note(f"outer step {before.outer_step}: {event}")
        return record
