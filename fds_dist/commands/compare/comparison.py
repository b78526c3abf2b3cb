"""Compares FDS with its rivals on one problem, at equal compute, and judges their results on fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fds_dist.commands.compare.incumbents import Improvement, incumbents
from fds_dist.commands.compare.job import Job, Say, SearchLog, Trial
from fds_dist.commands.compare.results import Comparison, Incumbent, MethodRun
from fds_dist.commands.compare.rivals import RIVALS
from fds_dist.commands.compare.rivals.recipe import Candidate
from fds_dist.commands.compare.rivals.rival import Rival
from fds_dist.commands.compare.space import WARMUP, SearchRange
from fds_dist.common.console import Count, count_nothing
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import write_text_atomic
from fds_dist.common.records import NotNaN, RecordFile
from fds_dist.common.values import FiniteRow
from fds_dist.outer.judge import Judge, JudgedRun, Judgement, judging, repetition
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import DEFAULT

Judged = dict[Candidate, list[Judgement]]
"""By candidate the judgements, one per seed."""

Retrain = Callable[[Schedule, Path], list[float]]
"""(learned schedule, a new folder) → test accuracies of `retrain_seeds` networks, trained with it on all training data.
Called alike on every rank."""

DAMAGED = "a file written by `fds-dist compare`; delete it to start over"
"""What a message expects in place of a file of results that cannot be read."""


@dataclass(frozen=True)
class Retrained:
    """A line of ``METHOD/retrained-REPETITION.jsonl``."""

    hyperparameters: dict[str, FiniteRow]
    test_accuracies: list[NotNaN]
    """One per seed."""


@dataclass(frozen=True)
class Search:
    """What one method did in one repetition."""

    method: str
    repetition: int
    job: Job
    trials: list[Trial]
    note: str

    @cached_property
    def best(self) -> list[Improvement]:
        """The trials that were the best so far."""
        return incumbents(self.trials, self.job.horizon)

    def candidate(self, trial: Trial) -> Candidate:
        """What one of the trials trained."""
        recipe = RIVALS[self.method].recipe(self.job, self.trials, trial)
        return Candidate(recipe, tuple(trial.values))

    def run(self, judged: Judged, accuracies: Sequence[float]) -> MethodRun:
        """The search with the judgements of its incumbents, and its answer's test accuracies after retraining."""
        return MethodRun(
            method=self.method,
            repetition=self.repetition,
            trials=len(self.trials),
            cost=sum(trial.cost for trial in self.trials),
            seconds=sum(trial.seconds for trial in self.trials),
            incumbents=[self._incumbent(improvement, judged) for improvement in self.best],
            note=self.note,
            retrained_accuracies=list(accuracies),
        )

    def _incumbent(self, improvement: Improvement, judged: Judged) -> Incumbent:
        trial, candidate = improvement.trial, self.candidate(improvement.trial)
        return Incumbent(
            number=trial.number,
            hyperparameters=candidate.recipe.named(self.job.problem, trial.values),
            cost=improvement.cost,
            seconds=improvement.seconds,
            own_loss=trial.val_loss,
            judgements=judged[candidate],
        )


def compare(
    job: Job,
    folder: Path,
    say: Say = lambda line: None,
    retrain: Retrain | None = None,
    count: Count = count_nothing,
) -> Comparison:
    """Runs every method in every repetition, judges the results and writes `folder/compare.json`.

    Called alike on all ranks; every rank returns the same. Each trial is written to `folder` when it is done, and a
    later call with the same folder continues from there.

    Args:
        job: that of the first repetition.
        say: receives lines about the progress, on rank 0.
        count: hears how many plain steps of all searches' budgets are spent.
        retrain: used if `retrain_seeds` of the options is above 0; otherwise the test accuracy is that of the judges'
            runs.

    Raises:
        UserError: a range is missing or wrong, a method cannot take part, the budget is below one run, or the folder
            holds another comparison.
    """
    options, ranks, methods, ranges = job.options, job.ranks, list[str](job.options.methods), job.ranges
    say = say if ranks.is_first else lambda line: None
    if faults := [fault for name in methods for fault in RIVALS[name].faults(job)]:
        raise UserError(faults)
    if job.budget < job.horizon:
        raise UserError(Fault("compare.budget", f"{job.budget:g} is out of range", f"at least one run: {job.horizon}"))
    ranks.on_first(lambda: _claim(folder, _identity(job)))
    pairs = [(index, name) for index in range(options.seeds) for name in methods]
    searches, total = [], round(len(pairs) * job.budget)
    for place, (index, name) in enumerate(pairs):
        searching = replace(job, problem=repetition(job.problem, index))
        searches.append(_search(name, index, searching, folder, say, _from(count, place * job.budget, total)))
        count(round((place + 1) * job.budget), total)  # a search may end before its budget is spent
    searches.sort(key=lambda search: methods.index(search.method))  # by method, then by repetition
    judged = _judged(job, searches, folder, say)
    runs = [search.run(judged, _retrained(search, folder, retrain)) for search in searches]
    described = _described(ranges)
    comparison = Comparison(
        job.horizon, job.budget, ranks.world_size, options.judge_seeds, job.estimator, described, runs
    )
    ranks.on_first(partial(write_text_atomic, folder / "compare.json", comparison.to_json()))
    return comparison


def _from(count: Count, before: float, total: int) -> Callable[[Sequence[Trial]], None]:
    """A function that counts the trials of a search, before which others had a budget of `before`."""
    return lambda trials: count(round(before + sum(trial.cost for trial in trials)), total)


def _search(
    name: str, index: int, job: Job, folder: Path, say: Say, count: Callable[[Sequence[Trial]], None]
) -> Search:
    """Runs one search; it continues from the trials that an earlier call recorded."""
    file = RecordFile(folder / name / f"trials-{index}.jsonl", Trial, DAMAGED)
    recorded = job.ranks.on_first(lambda: _recorded(file, RIVALS[name], job))
    trials = _affordable(recorded, job.budget)
    log = SearchLog(f"{name}, repetition {index}", job, say)
    log.before(trials)

    def report(batch: list[Trial]) -> None:
        job.ranks.on_first(partial(file.append, batch))
        trials.extend(batch)
        log.after(batch)
        count(trials)

    ended = len(trials) < len(recorded)  # an earlier call had a larger budget
    note = "" if ended else RIVALS[name].search(job, tuple(trials), report)
    log.end(len(trials), note)
    return Search(name, index, job, trials, note)


def _recorded(file: RecordFile[Trial], rival: Rival, job: Job) -> list[Trial]:
    """The trials that an earlier call recorded.

    Raises:
        UserError: a line is not a trial of this method, or not the one that follows; the file and the line are named.
    """
    trials = file.read()
    for number, trial in enumerate(trials):
        try:
            if trial.number != number:
                raise ValueError(f"it is trial {trial.number}, not {number}")
            rival.check(job, trial)
        except ValueError as error:
            problem = f"{file.path}, line {number + 1} is not a record: {error}"
            raise UserError(Fault("", problem, file.expected)) from None
    return trials


def _judged(job: Job, searches: Sequence[Search], folder: Path, say: Say) -> Judged:
    """Judges all incumbents of all searches, recipe by recipe."""
    file = RecordFile(folder / "judge.jsonl", JudgedRun, DAMAGED)
    candidates = [search.candidate(improvement.trial) for search in searches for improvement in search.best]
    judged: Judged = {}
    for recipe in dict.fromkeys(candidate.recipe for candidate in candidates):
        judge = Judge(
            problem=judging(job.problem),
            horizon=job.horizon,
            seeds=job.options.judge_seeds,
            ranks=job.ranks,
            file=file,
            say=say,
            setting=recipe.name,
            arrange=recipe.setting,
            test=True,
        )
        numbers = [candidate.numbers for candidate in candidates if candidate.recipe == recipe]
        judged |= {Candidate(recipe, values): runs for values, runs in judge.judge(numbers).items()}
    return judged


def _affordable(recorded: Sequence[Trial], budget: float) -> list[Trial]:
    """The first recorded trials, as many as this budget pays for: an earlier call may have had a larger budget."""
    trials, spent = [], 0.0
    for trial in recorded:
        spent += trial.cost
        if spent > budget:
            break
        trials.append(trial)
    return trials


def _retrained(search: Search, folder: Path, retrain: Retrain | None) -> list[float]:
    """The test accuracies of the answer after retraining; recorded accuracies are not measured again."""
    job, seeds = search.job, search.job.options.retrain_seeds
    if retrain is None or not seeds or not search.best:
        return []
    candidate = search.candidate(search.best[-1].trial)
    values = candidate.recipe.named(job.problem, candidate.numbers)
    target = folder / search.method / f"retrained-{search.repetition}"
    file = RecordFile(target.with_suffix(".jsonl"), Retrained, DAMAGED)
    for retrained in job.ranks.on_first(file.read):
        if retrained.hyperparameters == values and len(retrained.test_accuracies) == seeds:
            return retrained.test_accuracies
    accuracies = retrain(candidate.setting(job.problem, job.horizon).schedule(job.horizon), target)
    job.ranks.on_first(partial(file.append, [Retrained(values, accuracies)]))
    return accuracies


def _described(ranges: Sequence[SearchRange]) -> dict[str, dict[str, Any]]:
    """The search space as `compare.json` shows it."""
    return {
        each.owner.name: {
            "low": each.low,
            "high": each.high,
            "scale": each.owner.scale,
            "buckets": each.owner.buckets,
            **({"size": each.owner.size} if each.owner.size > 1 else {}),
            **({"shape": each.owner.shape} if each.owner.shape != DEFAULT else {}),
        }
        for each in ranges
    }


def _identity(job: Job) -> dict[str, str]:
    """The settings that recorded trials depend on, by the config's key."""
    problem, space = job.problem, job.problem.space
    warmup = [job.options.ranges[WARMUP]] if WARMUP in job.options.ranges else []
    answer = [(job.average, job.judge_seeds)] if job.runs_to_answer else []  # came later, too
    shapes = [(owner.name, owner.shape) for owner in space.learned if owner.shape != DEFAULT]  # came later
    further = [pair for pair in problem.step_settings.items() if pair[0] != "clip_gradient"]
    if problem.optimizer.name != "sgd":  # whose switch earlier versions did not record
        further += problem.optimizer.switches.items()
    return {
        "hyperparameters": repr((space.learned, sorted(space.fixed.items()), *shapes)),
        "inner": repr((problem.optimizer.name, problem.clip_gradient, job.horizon, *further)),
        "outer": repr((job.rule, job.settings.retreat, *answer)),
        "estimator": job.estimator,
        "greedy": str(job.greedy_discount),
        "tangents": repr((problem.tangents.clip_hvp, problem.tangents.pruning)),
        "compare.ranges": repr([*((each.low, each.high, each.owner.scale) for each in job.ranges), *warmup]),
        "seed": str(problem.seed),
    }


def _claim(folder: Path, identity: dict[str, str]) -> None:
    """Records which comparison it holds.

    Raises:
        UserError: it holds trials of another comparison.
    """
    file = RecordFile(folder / "settings.jsonl", dict[str, str], DAMAGED)
    before = file.read()
    if not before:
        file.append([identity])
        return
    changed = [key for key in identity if before[0].get(key) != identity[key]]
    if changed:
        problem = f"differs from the comparison in {folder}"
        raise UserError(Fault(key, problem, "the same as there, or another folder") for key in changed)
