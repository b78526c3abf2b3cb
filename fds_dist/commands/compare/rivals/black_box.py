"""The methods that see only losses: Optuna suggests the numbers of a recipe, and plain runs return their losses.

Rank 0 keeps the study. It suggests one trial per rank at a time, each rank trains one trial, and the study receives the
losses together, in the order of the suggestions. The number of ranks changes only the size of these batches.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fds_dist.commands.compare.job import Job, Report, Trial
from fds_dist.commands.compare.rivals.recipe import Recipe
from fds_dist.commands.compare.rivals.study import RESOURCES, Kind, Memory, Study
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.records import from_values
from fds_dist.inner.plain_run import AtRung, plain_run


@dataclass(frozen=True)
class BlackBox:
    """A search of one recipe's numbers."""

    name: str
    """In the config, and in the random numbers of the search."""
    label: str
    searched: Recipe
    kind: Kind = field(default=Kind(guided=True))

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Rival`."""
        yield from optuna_faults(self.name)
        yield from self.searched.faults(job)

    def check(self, job: Job, trial: Trial) -> None:
        """See `Rival`."""
        check_memory(trial)

    def search(self, job: Job, before: Sequence[Trial], report: Report) -> str:
        """See `Rival`."""
        explore(self.name, self.kind, self.searched, job, job.budget, before, report)
        return ""

    def recipe(self, job: Job, trials: Sequence[Trial], trial: Trial) -> Recipe:
        """See `Rival`."""
        return self.searched


def check_memory(trial: Trial) -> None:
    """Raises a ValueError where the `state` of a recorded trial is not what the study needs."""
    memory = from_values(Memory, trial.state)
    if len(memory.coordinates) != len(trial.values):
        raise ValueError(f"{len(memory.coordinates)} coordinates for {len(trial.values)} numbers")


def optuna_faults(name: str) -> Iterator[Fault]:
    """What is missing for a method that searches with Optuna."""
    if importlib.util.find_spec("optuna") is None:
        problem = f"{name} needs Optuna, which is not installed"
        yield Fault("compare.methods", problem, "only fds and greedy, or pip install 'fds-dist[search]'")


def rungs_of(horizon: int) -> dict[int, int]:
    """Hyperband's resource → the inner step of that rung, below the horizon. Short horizons have fewer rungs."""
    steps = {resource: horizon * resource // RESOURCES[-1] for resource in RESOURCES[:-1]}
    return {resource: step for resource, step in steps.items() if step >= 1}


def explore(
    name: str, kind: Kind, recipe: Recipe, job: Job, budget: float, before: Sequence[Trial], report: Report
) -> None:
    """Continues the search called `name` from the trials `before` until `budget` plain training steps are spent.

    Raises:
        UserError: the trials before have other numbers than `recipe`.
    """
    ranges, ranks = recipe.ranges(job), job.ranks
    if any(len(trial.state["coordinates"]) != len(ranges) for trial in before):
        problem = f"{name} here searches {', '.join(ranges)}, and its recorded trials have other numbers"
        raise UserError(Fault("compare.methods", problem, "another folder, as an earlier version made this one"))
    study = Study(name, kind, ranges, job.problem.seed, before) if ranks.is_first else None
    batch = Batch(recipe, job, study, rungs_of(job.horizon) if kind.pruned else {})
    done, spent = len(before), sum(trial.cost for trial in before)
    while (count := min(ranks.world_size, int((budget - spent) // job.horizon))) > 0:
        coordinates = ranks.on_first(lambda count=count: study.ask(count) if study else [])
        trials = batch.run(done, coordinates)
        report(trials)
        done, spent = done + count, spent + sum(trial.cost for trial in trials)


@dataclass(frozen=True)
class Batch:
    """One trial per rank at a time."""

    recipe: Recipe
    job: Job
    study: Study | None
    """On rank 0."""
    rungs: dict[int, int]

    def run(self, first: int, coordinates: list[list[float]]) -> list[Trial]:
        """Runs the trials `first`, `first` + 1, ... and returns all of them on every rank.

        Ranks without a trial only exchange losses.
        """
        ranks, study, count = self.job.ranks, self.study, len(coordinates)
        resources = iter(self.rungs)

        def at_rung(loss: float | None) -> bool:
            losses = ranks.gather_objects(loss)[:count]
            resource = next(resources)
            verdicts = ranks.on_first(lambda: study.continues(resource, losses) if study else [])
            return ranks.rank < count and verdicts[ranks.rank]

        rank_trial = None
        if ranks.rank < count:
            rank_trial = self._trial(first + ranks.rank, coordinates[ranks.rank], at_rung)
        else:
            for _ in self.rungs:
                at_rung(None)
        trials = [trial for trial in ranks.gather_objects(rank_trial) if trial is not None]
        memories = ranks.on_first(lambda: study.tell(trials) if study else [])
        return [replace(trial, state={**trial.state, **memory}) for trial, memory in zip(trials, memories, strict=True)]

    def _trial(self, number: int, coordinates: list[float], at_rung: AtRung) -> Trial:
        job = self.job
        ranges = self.recipe.ranges(job).values()
        numbers = [each.value(coordinate) for each, coordinate in zip(ranges, coordinates, strict=True)]
        setting = self.recipe.setting(job.problem, job.horizon, numbers)
        run = plain_run(*setting, number, job.horizon, list(self.rungs.values()), at_rung)
        pruned = run.steps < job.horizon and math.isfinite(run.val.loss)
        return Trial(
            number=number,
            values=numbers,
            val_loss=run.val.loss,
            val_accuracy=run.val.accuracy,
            steps=run.steps,
            cost=float(run.steps),
            seconds=run.seconds,
            state={"coordinates": coordinates, "pruned": pruned},
        )
