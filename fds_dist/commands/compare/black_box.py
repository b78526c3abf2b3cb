"""The methods that see only losses: Optuna suggests values, and plain runs return their losses.

Rank 0 keeps the study. It suggests one trial per rank at a time, each rank trains one trial, and the study receives the
losses together, in the order of the suggestions. The number of ranks changes only the size of these batches.

The sampler gets a new seed for each batch, a function of the search's seed and the number of earlier trials. A
suggestion thus depends on the recorded trials alone: a resumed search suggests the same values as an uninterrupted one.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fds_dist.commands.compare.job import Job, Report, Trial, loss_or_infinity
from fds_dist.commands.compare.space import SearchRange, cosine_at, values_at
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import derive_seed
from fds_dist.inner.plain_run import plain_run

if TYPE_CHECKING:
    import optuna


class Kind(NamedTuple):
    """How a black box searches."""

    guided: bool = False
    """Whether a tree-structured Parzen estimator suggests the values; otherwise they are random."""
    pruned: bool = False
    """Whether Hyperband ends poor runs early."""
    cosine: bool = False
    """Whether it searches the height of a cosine, and constants: one coordinate per hyperparameter, not per bucket."""


BLACK_BOXES = {
    "cosine": Kind(guided=True, cosine=True),
    "random": Kind(),
    "tpe": Kind(guided=True),
    "hyperband": Kind(pruned=True),
    "bohb": Kind(guided=True, pruned=True),
}
"""Name → how that method searches."""

REDUCTION = 3
RESOURCES = (1, 3, 9)
"""Hyperband's rungs: runs are compared after 1/9 and 3/9 of the horizon, and a third of them continues."""

RUNG_ATTRIBUTE = "completed_rung_"
"""Prefix of the attributes in which Optuna's pruner stores a trial's losses at the rungs."""


def need_optuna() -> None:
    """Raises `UserError` where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        problem = f"{', '.join(BLACK_BOXES)} need Optuna, which is not installed"
        raise UserError(Fault("compare.methods", problem, "only fds and greedy, or pip install 'fds-dist[search]'"))


class BlackBox:
    """The study of one search, on rank 0."""

    def __init__(self, name: str, ranges: Sequence[SearchRange], seed: int, before: Sequence[Trial]) -> None:
        import optuna

        self._optuna, self._name, self._seed = optuna, name, seed
        self._guided, pruned, cosine = BLACK_BOXES[name]
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            f"{each.owner.name}.{number}": optuna.distributions.FloatDistribution(*each.coordinates)
            for each in ranges
            for number in range(1 if cosine else each.owner.count)
        }
        pruner = (
            optuna.pruners.HyperbandPruner(RESOURCES[0], RESOURCES[-1], REDUCTION)
            if pruned
            else optuna.pruners.NopPruner()
        )
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # creating a study prints a line
        # Hyperband draws a trial's bracket from the study's name and the trial's number.
        self._study = optuna.create_study(study_name=f"{name}-{seed}", pruner=pruner, sampler=self._sampler())
        optuna.logging.set_verbosity(verbosity)
        for trial in before:
            self._study.add_trial(self._frozen(trial))

    def ask(self, count: int) -> list[list[float]]:
        """Coordinates [K], or one per hyperparameter for a cosine, of the next `count` trials."""
        self._study.sampler = self._sampler(len(self._study.trials))
        self._asked = [self._study.ask(self._distributions) for _ in range(count)]
        return [[trial.params[name] for name in self._distributions] for trial in self._asked]

    def continues(self, resource: int, losses: Sequence[float | None]) -> list[bool]:
        """Whether each trial of the last `ask` continues after a rung, given its loss there (None: it ended before)."""
        verdicts = []
        for trial, loss in zip(self._asked, losses, strict=True):
            if loss is not None:
                trial.report(loss, resource)
            verdicts.append(loss is not None and math.isfinite(loss) and not trial.should_prune())
        return verdicts

    def tell(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Ends the trials of the last `ask`; returns what the study stores about each besides its loss."""
        states = self._optuna.trial.TrialState
        for asked, trial in zip(self._asked, trials, strict=True):
            if trial.state["pruned"]:
                self._study.tell(asked, state=states.PRUNED)
            else:
                self._study.tell(asked, trial.val_loss)
        return [self._memory(self._study.trials[asked.number]) for asked in self._asked]

    def _sampler(self, number: int = 0) -> optuna.samplers.BaseSampler:
        samplers = self._optuna.samplers
        seed = derive_seed(self._seed, "compare", self._name, number) % 2**32
        return samplers.TPESampler(seed=seed) if self._guided else samplers.RandomSampler(seed=seed)

    def _memory(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        rungs = {key: value for key, value in trial.system_attrs.items() if RUNG_ATTRIBUTE in key}
        losses = {str(step): value for step, value in trial.intermediate_values.items()}
        return {"intermediate": losses, "rungs": rungs}

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        """A recorded trial in Optuna's form."""
        state = trial.state
        states = self._optuna.trial.TrialState
        return self._optuna.trial.create_trial(
            state=states.PRUNED if state["pruned"] else states.COMPLETE,
            value=trial.val_loss,
            params=dict(zip(self._distributions, state["coordinates"], strict=True)),
            distributions=self._distributions,
            intermediate_values={int(step): loss_or_infinity(loss) for step, loss in state["intermediate"].items()},
            system_attrs={key: loss_or_infinity(loss) for key, loss in state["rungs"].items()},
        )


def rungs_of(horizon: int) -> dict[int, int]:
    """Hyperband's resource → the inner step of that rung, below the horizon. Short horizons have fewer rungs."""
    steps = {resource: horizon * resource // RESOURCES[-1] for resource in RESOURCES[:-1]}
    return {resource: step for resource, step in steps.items() if step >= 1}


def black_box(name: str, job: Job, before: Sequence[Trial], report: Report) -> str:
    """The `Method` called `name` in `BLACK_BOXES`."""
    ranks = job.ranks
    kind = BLACK_BOXES[name]
    rungs = rungs_of(job.horizon) if kind.pruned else {}
    values_of = partial(cosine_at if kind.cosine else values_at, job.ranges)
    box = BlackBox(name, job.ranges, job.problem.seed, before) if ranks.is_first else None
    done, spent = len(before), sum(trial.cost for trial in before)
    while (count := min(ranks.world_size, int((job.budget - spent) // job.horizon))) > 0:
        coordinates = ranks.on_first(lambda count=count: box.ask(count) if box else [])
        trials = _run_batch(job, box, done, coordinates, values_of, rungs)
        report(trials)
        done, spent = done + count, spent + sum(trial.cost for trial in trials)
    return ""


def _run_batch(
    job: Job,
    box: BlackBox | None,
    first: int,
    coordinates: list[list[float]],
    values_of: Callable[[Sequence[float]], list[float]],
    rungs: dict[int, int],
) -> list[Trial]:
    """Runs one trial per rank and returns all of them on every rank; ranks without a trial only exchange losses."""
    ranks, count = job.ranks, len(coordinates)
    resources = iter(rungs)

    def at_rung(loss: float | None) -> bool:
        losses = ranks.gather_objects(loss)[:count]
        resource = next(resources)
        verdicts = ranks.on_first(lambda: box.continues(resource, losses) if box else [])
        return ranks.rank < count and verdicts[ranks.rank]

    rank_trial = None
    if ranks.rank < count:
        number, point = first + ranks.rank, coordinates[ranks.rank]
        values = values_of(point)
        run = plain_run(job.problem, values, number, job.horizon, list(rungs.values()), at_rung)
        pruned = run.steps < job.horizon and math.isfinite(run.val.loss)
        rank_trial = Trial(
            number=number,
            values=values,
            val_loss=run.val.loss,
            val_accuracy=run.val.accuracy,
            steps=run.steps,
            cost=float(run.steps),
            seconds=run.seconds,
            state={"coordinates": point, "pruned": pruned},
        )
    else:
        for _ in rungs:
            at_rung(None)
    trials = [trial for trial in ranks.gather_objects(rank_trial) if trial is not None]
    memories = ranks.on_first(lambda: box.tell(trials) if box else [])
    return [replace(trial, state={**trial.state, **memory}) for trial, memory in zip(trials, memories, strict=True)]
