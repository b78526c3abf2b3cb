"""Compares FDS with its rivals on one problem, at equal compute, and judges their results on fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fds_dist.commands.compare.black_box import BLACK_BOXES, black_box, need_optuna
from fds_dist.commands.compare.gradient import fds, greedy
from fds_dist.commands.compare.incumbents import Improvement, incumbents
from fds_dist.commands.compare.job import Job, Method, Say, SearchLog, Trial
from fds_dist.commands.compare.results import Comparison, Incumbent, MethodRun
from fds_dist.commands.compare.space import SearchRange, search_ranges
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import write_text_atomic
from fds_dist.common.records import RecordFile
from fds_dist.common.values import RowOrNan
from fds_dist.config.compare import CompareConfig
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.monitor import Consistency
from fds_dist.inner.plan import estimator_cost
from fds_dist.inner.problem import Problem
from fds_dist.outer.judge import Judge, JudgedRun, Judgement, judging, repetition
from fds_dist.outer.progress import OuterSettings
from fds_dist.outer.rules import OuterRule
from fds_dist.schedule.schedule import Schedule

METHODS: dict[str, Method] = {
    "fds": fds,
    "greedy": greedy,
    **{name: partial(black_box, name) for name in BLACK_BOXES},
}
"""Name in `compare.methods` → the method."""

Retrain = Callable[[Schedule, Path], list[float]]
"""(learned schedule, a new folder) → test accuracies of `retrain_seeds` networks, trained with it on all training data.
Called alike on every rank."""

DAMAGED = "a file written by `fds-dist compare`; delete it to start over"
"""What a message expects in place of a file of results that cannot be read."""


@dataclass(frozen=True)
class Retrained:
    """A line of ``METHOD/retrained-REPETITION.jsonl``."""

    hyperparameters: dict[str, RowOrNan]
    test_accuracies: list[float]
    """One per seed."""


@dataclass(frozen=True)
class Search:
    """What one method did in one repetition."""

    method: str
    repetition: int
    trials: list[Trial]
    note: str


def compare(
    problem: Problem,
    rule: OuterRule,
    settings: OuterSettings,
    estimator: str,
    options: CompareConfig,
    ranks: Ranks,
    folder: Path,
    greedy_discount: float = 0.0,
    say: Say = lambda line: None,
    consistency: Consistency | None = None,
    retrain: Retrain | None = None,
) -> Comparison:
    """Runs every method of `options` in every repetition, judges the results and writes `folder/compare.json`.

    Called alike on all ranks; every rank returns the same. Each trial is written to `folder` when it is done, and a
    later call with the same folder continues from there.

    Args:
        estimator: the name of the estimator that `fds` uses.
        greedy_discount: what the estimator of `greedy` remembers from step to step.
        say: receives lines about the progress, on rank 0.
        retrain: used if `options.retrain_seeds` is above 0; otherwise the test accuracy is that of the judges' runs.

    Raises:
        UserError: a range is missing or wrong, Optuna is not installed, the budget is below one run, or the folder
            holds another comparison.
    """
    ranges = search_ranges(problem.space, options)
    if any(name in BLACK_BOXES for name in options.methods):
        need_optuna()
    cost = sum(estimator_cost(estimator, problem, horizon, greedy_discount) for horizon in settings.horizons)
    job = Job(
        problem=problem,
        rule=rule,
        settings=settings,
        estimator=estimator,
        greedy_discount=greedy_discount,
        ranges=ranges,
        horizon=max(settings.horizons),
        budget=options.budget or cost,
        ranks=ranks,
        consistency=consistency or Consistency(),
    )
    if job.budget < job.horizon:
        raise UserError(Fault("compare.budget", f"{job.budget:g} is out of range", f"at least one run: {job.horizon}"))
    ranks.on_first(lambda: _claim(folder, _identity(job)))
    runs = _judged_runs(job, options, folder, say if ranks.is_first else lambda line: None)
    if retrain is not None and options.retrain_seeds:
        runs = [_retrained(job, run, retrain, options.retrain_seeds, folder) for run in runs]
    order = list[str](options.methods)
    runs.sort(key=lambda run: order.index(run.method))  # by method, then by repetition
    comparison = Comparison(
        job.horizon, job.budget, ranks.world_size, options.judge_seeds, estimator, _described(ranges), runs
    )
    if ranks.is_first:
        write_text_atomic(folder / "compare.json", comparison.to_json())
    return comparison


def _judged_runs(job: Job, options: CompareConfig, folder: Path, say: Say) -> list[MethodRun]:
    """Runs all searches, one repetition after the other, and judges their incumbents."""
    searches = [
        _search(name, index, replace(job, problem=repetition(job.problem, index)), folder, say)
        for index in range(options.seeds)
        for name in options.methods
    ]
    best = [incumbents(search.trials, job.horizon) for search in searches]
    candidates = [incumbent.trial.values for row in best for incumbent in row]
    file = RecordFile(folder / "judge.jsonl", JudgedRun, DAMAGED)
    judge = Judge(judging(job.problem), job.horizon, options.judge_seeds, job.ranks, file, say, test=True)
    judged = judge.judge(candidates)
    return [_run(job.problem, search, row, judged) for search, row in zip(searches, best, strict=True)]


def _search(name: str, index: int, job: Job, folder: Path, say: Say) -> Search:
    """Runs one search; it continues from the trials that an earlier call recorded."""
    file = RecordFile(folder / name / f"trials-{index}.jsonl", Trial, DAMAGED)
    trials = _affordable(job.ranks.on_first(file.read), job.budget)
    log = SearchLog(f"{name}, repetition {index}", job, say)
    log.before(trials)

    def report(batch: list[Trial]) -> None:
        if job.ranks.is_first:
            file.append(batch)
        trials.extend(batch)
        log.after(batch)

    note = METHODS[name](job, tuple(trials), report)
    log.end(len(trials), note)
    return Search(name, index, trials, note)


def _affordable(recorded: Sequence[Trial], budget: float) -> list[Trial]:
    """The first recorded trials, as many as this budget pays for: an earlier call may have had a larger budget."""
    trials, spent = [], 0.0
    for trial in recorded:
        spent += trial.cost
        if spent > budget:
            break
        trials.append(trial)
    return trials


def _run(
    problem: Problem, search: Search, improvements: list[Improvement], judged: dict[tuple[float, ...], list[Judgement]]
) -> MethodRun:
    """A search with the judgements of its incumbents."""
    best = [
        Incumbent(
            number=trial.number,
            hyperparameters=problem.space.unpack(trial.values),
            cost=cost,
            seconds=seconds,
            own_loss=trial.val_loss,
            judgements=judged[tuple(trial.values)],
        )
        for trial, cost, seconds in improvements
    ]
    return MethodRun(
        method=search.method,
        repetition=search.repetition,
        trials=len(search.trials),
        cost=sum(trial.cost for trial in search.trials),
        seconds=sum(trial.seconds for trial in search.trials),
        incumbents=best,
        note=search.note,
    )


def _retrained(job: Job, run: MethodRun, retrain: Retrain, seeds: int, folder: Path) -> MethodRun:
    """The run with the test accuracies of its answer after retraining; recorded accuracies are not measured again."""
    if run.answer is None:
        return run
    values = run.answer.hyperparameters
    target = folder / run.method / f"retrained-{run.repetition}"
    file = RecordFile(target.with_suffix(".jsonl"), Retrained, DAMAGED)
    for retrained in job.ranks.on_first(file.read):
        if retrained.hyperparameters == values and len(retrained.test_accuracies) == seeds:
            return replace(run, retrained_accuracies=retrained.test_accuracies)
    space = job.problem.space
    accuracies = retrain(space.schedule(space.pack(values), job.horizon, job.problem.optimizer_info), target)
    if job.ranks.is_first:
        file.append([Retrained(values, accuracies)])
    return replace(run, retrained_accuracies=accuracies)


def _described(ranges: Sequence[SearchRange]) -> dict[str, dict[str, Any]]:
    """The search space as `compare.json` shows it."""
    return {
        each.owner.name: {
            "low": each.low,
            "high": each.high,
            "scale": each.owner.scale,
            "buckets": each.owner.buckets,
            **({"size": each.owner.size} if each.owner.size > 1 else {}),
        }
        for each in ranges
    }


def _identity(job: Job) -> dict[str, str]:
    """The settings that recorded trials depend on, by the config's key."""
    problem, space = job.problem, job.problem.space
    further = [pair for pair in problem.step_settings.items() if pair[0] != "clip_gradient"]
    if problem.optimizer.name != "sgd":  # whose switch earlier versions did not record
        further += problem.optimizer.switches.items()
    return {
        "hyperparameters": repr((space.learned, sorted(space.fixed.items()))),
        "inner": repr((problem.optimizer.name, problem.clip_gradient, job.horizon, *further)),
        "outer": repr((job.rule, job.settings.retreat)),
        "estimator": job.estimator,
        "greedy": str(job.greedy_discount),
        "tangents": repr((problem.tangents.clip_hvp, problem.tangents.pruning)),
        "compare.ranges": repr([(each.low, each.high, each.owner.scale) for each in job.ranges]),
        "seed": str(problem.seed),
    }


def _claim(folder: Path, identity: dict[str, str]) -> None:
    """Makes the folder, and records which comparison it holds.

    Raises:
        UserError: it holds trials of another comparison.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = RecordFile(folder / "settings.jsonl", dict[str, str], DAMAGED)
    before = file.read()
    if not before:
        file.append([identity])
        return
    changed = [key for key in identity if before[0].get(key) != identity[key]]
    if changed:
        problem = f"differs from the comparison in {folder}"
        raise UserError(Fault(key, problem, "the same as there, or another folder") for key in changed)
