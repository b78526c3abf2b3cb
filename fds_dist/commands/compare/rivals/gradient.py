"""The methods that follow hypergradients: the outer loop with the config's estimator, or with the greedy one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fds_dist.commands.compare.job import Job, Report, Trial, loss_or_infinity
from fds_dist.commands.compare.rivals.answer import final_trial
from fds_dist.commands.compare.rivals.recipe import Buckets, Recipe
from fds_dist.common.faults import Fault
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.monitor import StepMonitor
from fds_dist.inner.plan import Plan
from fds_dist.outer.loop import HypergradientsNotFinite, OuterListener, OuterLoop
from fds_dist.outer.progress import OuterProgress, initial_progress
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.records import InnerBlock, OuterRecord
from fds_dist.tracking.trackers import Tracker, Trackers

NOT_FINITE = "too many hypergradients in a row were not finite"


class _LastRecord(Tracker):
    """A tracker that keeps the record of the last outer step."""

    required = True

    def outer(self, record: OuterRecord) -> None:
        self.record = record


@dataclass
class _Reporting(OuterListener):
    """Reports each outer step as a trial; prints nothing."""

    job: Job
    estimator: str
    last: _LastRecord
    report: Report

    def monitor(self, outer_step: int, schedule: Schedule, plan: Plan) -> StepMonitor:
        """See `OuterListener`."""
        return StepMonitor(outer_step, schedule, plan, self.job.ranks, _ignore, self.job.consistency)

    def save(self, progress: OuterProgress) -> None:
        """See `OuterListener`."""
        self.report([_trial(self.job, self.estimator, self.last.record, progress)])


def _ignore(block: InnerBlock) -> None:
    """Nobody watches the inner runs of a comparison."""


@dataclass(frozen=True)
class Fds:
    """The search of `optimize`: the outer steps of the config, as far as the budget reaches, and its answer.

    An answered search is over: a larger budget does not go on with it.
    """

    label: str = "FDS"

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Rival`."""
        return iter(())

    def check(self, job: Job, trial: Trial) -> None:
        """See `Rival`."""
        size = job.problem.space.size
        counts = {len(trial.values)} if trial.is_answer else {len(trial.values), len(_progress(trial).values)}
        if counts != {size}:
            raise ValueError(f"it has {' and '.join(map(str, sorted(counts)))} numbers, not {size}")

    def search(self, job: Job, before: Sequence[Trial], report: Report) -> str:
        """See `Rival`."""
        if before and before[-1].is_answer:
            return ""
        steps = list(before)

        def collect(batch: list[Trial]) -> None:
            steps.extend(batch)
            report(batch)

        note = _outer_loop(job, job.estimator, job.settings.horizons, before, collect)
        if answer := final_trial(job, steps):
            report([answer])
        return note

    def recipe(self, job: Job, trials: Sequence[Trial], trial: Trial) -> Recipe:
        """See `Rival`."""
        return Buckets()


@dataclass(frozen=True)
class Greedy(Fds):
    """The same outer loop on greedy hypergradients; it repeats the last horizon until the budget is spent."""

    label: str = "greedy"

    def search(self, job: Job, before: Sequence[Trial], report: Report) -> str:
        """See `Rival`."""
        horizons = job.settings.horizons
        more = int(job.budget // job.cost("greedy", horizons[-1]))
        return _outer_loop(job, "greedy", horizons + horizons[-1:] * more, before, report)


def _progress(trial: Trial) -> OuterProgress:
    """Where the outer loop stands after the trial."""
    return OuterProgress.from_dict(trial.state)


def affordable(job: Job, estimator: str, horizons: Sequence[int]) -> tuple[int, ...]:
    """The horizons of the first outer steps, as many as the budget pays for."""
    spent = 0.0
    for done, horizon in enumerate(horizons):
        spent += job.cost(estimator, horizon)
        if spent > job.budget:
            return tuple(horizons[:done])
    return tuple(horizons)


def _outer_loop(job: Job, estimator: str, horizons: Sequence[int], before: Sequence[Trial], report: Report) -> str:
    settings = replace(job.settings, horizons=affordable(job, estimator, horizons), timeout=None, target=None)
    if not settings.horizons:
        return "one outer step costs more than the budget"
    progress = initial_progress(job.problem, job.rule, settings)
    if before:
        progress = _progress(before[-1])
    if progress.state.failures >= settings.nonfinite_patience:
        return NOT_FINITE
    last = _LastRecord()
    listener = _Reporting(job, estimator, last, report)
    compute = greedy_estimator(job.greedy_discount) if estimator == "greedy" else ESTIMATORS[estimator]
    loop = OuterLoop(job.problem, compute, job.rule, settings, job.ranks, Trackers([last]), listener)
    try:
        progress = loop.run(progress)
    except HypergradientsNotFinite:
        return NOT_FINITE
    return "every step is below the tolerance" if progress.converged else ""


def _trial(job: Job, estimator: str, record: OuterRecord, progress: OuterProgress) -> Trial:
    return Trial(
        number=record.outer_step,
        values=job.problem.space.pack(record.hyperparameters),
        val_loss=loss_or_infinity(record.val_loss),
        val_accuracy=record.val_accuracy,
        steps=record.horizon,
        cost=job.cost(estimator, record.horizon),
        seconds=record.seconds * job.ranks.world_size,
        state=progress.to_dict(),
    )
