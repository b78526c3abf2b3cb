"""The outer loop: an inner run, its hypergradients, a step of the hyperparameters, and again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from fds_dist.common.memory import own_peak_bytes
from fds_dist.common.records import FloatOrInf, from_values
from fds_dist.common.values import few
from fds_dist.common.words import duration
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimators import Estimate, Estimator
from fds_dist.inner.plan import Plan, make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, OnStep, RunCheckpointer, go_on
from fds_dist.inner.split_check import check_batches, check_split
from fds_dist.outer.replicas import mean_over_replicas, run_number
from fds_dist.outer.rules import OuterRule, OuterState, OuterStep
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.trackers import Trackers


class HypergradientsNotFinite(RuntimeError):
    """Too many outer steps in a row gave a hypergradient that is not finite."""


@dataclass(frozen=True)
class OuterSettings:
    """When the outer loop ends."""

    horizons: tuple[int, ...]
    """Inner steps of each outer step."""
    nonfinite_patience: int = 3
    """After this many outer steps in a row with a hypergradient that is not finite, the run ends with an error."""
    retreat: bool = False
    """Whether to return to the best λ, with half the steps, when an inner run ends worse than the very first."""
    timeout: float | None = None
    """Seconds of all outer steps together after which no other one begins."""
    target: float | None = None
    """The validation loss that is good enough."""

    def ending(self, progress: OuterProgress) -> str:
        """Why no outer step follows although the config asks for more; "" where that is not so."""
        if progress.converged:
            return "every step is below the tolerance"
        if self.target is not None and progress.best is not None and progress.best[2] <= self.target:
            outer_step, _, val_loss, _ = progress.best
            return f"outer step {outer_step} reached val loss {val_loss:.4g}, at or below outer.target={self.target:g}"
        if self.timeout is not None and progress.seconds >= self.timeout:
            return f"outer.timeout={self.timeout:g} is over after {duration(progress.seconds)}"
        return ""


@dataclass(frozen=True)
class OuterProgress:
    """The state of the outer loop between two outer steps: everything that is needed to continue."""

    outer_step: int
    """Outer steps done."""
    values: list[float]
    """[K] λ for the next outer step."""
    state: OuterState
    horizon: int
    """The inner steps of the last outer step, and of the schedule."""
    converged: bool = False
    best: tuple[int, list[float], float, float | None] | None = None
    """(outer step, its λ, validation loss, accuracy) of the lowest validation loss so far."""
    first_val_loss: FloatOrInf = math.inf
    """The validation loss of the first outer step; infinite if that run diverged."""
    seconds: float = field(default=0.0, compare=False)
    """The time of all outer steps by the clock of rank 0, earlier starts included."""

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OuterProgress:
        """The inverse of `to_dict`, also from values that were read from JSON."""
        return from_values(cls, content)


def initial_progress(problem: Problem, rule: OuterRule, settings: OuterSettings) -> OuterProgress:
    """The progress before the first outer step."""
    values = problem.space.initial()
    return OuterProgress(0, values, rule.init(problem.space), settings.horizons[0])


class RankReport(NamedTuple):
    """What one rank tells all others after an outer step."""

    val_loss: float
    seconds: float
    busy_seconds: float
    """The part of `seconds` in which the rank did not wait for others."""
    peak_bytes: int


class OuterListener:
    """Follows an outer loop; called alike on every rank."""

    def monitor(self, outer_step: int, schedule: Schedule, plan: Plan) -> OnStep:
        """The function that is called after each step of the inner run of `outer_step`."""
        return go_on

    def checkpointer(self, outer_step: int, values: Sequence[float], horizon: int) -> RunCheckpointer | None:
        """The object that saves the inner run of `outer_step` at λ = `values` [K]; None: it is not saved."""
        return None

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
        """Runs one outer step: inner run, hypergradients, update, record."""
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
        )
        check_batches(self.problem, run.number, self.ranks.data)
        if number == 0:
            check_split(run)
        estimate = mean_over_replicas(self.estimator(run), self.ranks)
        reports = self._reports(estimate, time.perf_counter() - began, self.ranks.waited - waited)
        estimate = replace(estimate, val_loss=reports[0].val_loss)  # one rank's rounding decides alike on all
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
        return after

    def _reports(self, estimate: Estimate, seconds: float, waited: float) -> list[RankReport]:
        """Of each rank, in the order of the ranks."""
        peak = own_peak_bytes(self.ranks.device)
        return self.ranks.gather_objects(RankReport(estimate.val_loss, seconds, seconds - waited, peak))

    def next_values(self, progress: OuterProgress, estimate: Estimate) -> tuple[OuterStep, bool]:
        """The rule's step along the hypergradients, or a retreat to the best λ if the inner run diverged."""
        diverged = not estimate.val_loss <= progress.first_val_loss  # a NaN has diverged too
        if self.settings.retreat and diverged and progress.best is not None:
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
        self.trackers.outer(record)
        for event in events:
            self.trackers.note(f"outer step {before.outer_step}: {event}")
        return record
