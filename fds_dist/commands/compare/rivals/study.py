"""The study of one search: Optuna suggests numbers, and receives the losses of the runs with them.

The sampler gets a new seed for each batch of suggestions, a function of the search's seed and the number of earlier
trials. A suggestion thus depends on the recorded trials alone: a resumed search suggests the same values as an
uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from fds_dist.commands.compare.job import Trial, loss_or_infinity
from fds_dist.commands.compare.space import SearchRange
from fds_dist.common.randomness import derive_seed
from fds_dist.common.records import Finite, FloatOrInf, from_values

if TYPE_CHECKING:
    import optuna

REDUCTION = 3
RESOURCES = (1, 3, 9)
"""Hyperband's rungs: runs are compared after 1/9 and 3/9 of the horizon, and a third of them continues."""

RUNG_ATTRIBUTE = "completed_rung_"
"""Prefix of the attributes in which Optuna's pruner stores a trial's losses at the rungs."""


class Kind(NamedTuple):
    """How a black box searches."""

    guided: bool = False
    """Whether a tree-structured Parzen estimator suggests the values; otherwise they are random."""
    pruned: bool = False
    """Whether Hyperband ends poor runs early."""


@dataclass(frozen=True)
class Memory:
    """What the study needs of a trial beside its loss: its `state`."""

    coordinates: list[Finite]
    pruned: bool
    intermediate: dict[Annotated[str, Field(pattern="^[0-9]+$")], FloatOrInf]
    """Step → loss."""
    rungs: dict[str, FloatOrInf]


class Study:
    """The study of one search, on rank 0."""

    def __init__(
        self, name: str, kind: Kind, ranges: Mapping[str, SearchRange], seed: int, before: Sequence[Trial]
    ) -> None:
        import optuna

        self._optuna, self._name, self._seed, self._guided = optuna, name, seed, kind.guided
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            number: optuna.distributions.FloatDistribution(*each.coordinates) for number, each in ranges.items()
        }
        pruner = (
            optuna.pruners.HyperbandPruner(RESOURCES[0], RESOURCES[-1], REDUCTION)
            if kind.pruned
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
        """Coordinates [N] of the next `count` trials."""
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
        memory = from_values(Memory, trial.state)
        states = self._optuna.trial.TrialState
        return self._optuna.trial.create_trial(
            state=states.PRUNED if memory.pruned else states.COMPLETE,
            value=trial.val_loss,
            params=dict(zip(self._distributions, memory.coordinates, strict=True)),
            distributions=self._distributions,
            intermediate_values={int(step): loss_or_infinity(loss) for step, loss in memory.intermediate.items()},
            system_attrs={key: loss_or_infinity(loss) for key, loss in memory.rungs.items()},
        )
