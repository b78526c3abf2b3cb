"""The results of a comparison: the records in `compare.json`."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import read_json
from fds_dist.common.records import Count, FloatOrInf, NonNegative, NotNaN, Whole, from_values, to_values
from fds_dist.common.values import FiniteRow
from fds_dist.common.words import Spread, spread
from fds_dist.outer.judge import Judgement

REFERENCE = "fds"
"""The method that the others are measured by."""

FORMAT = "fds-dist comparison"


@dataclass(frozen=True)
class Incumbent:
    """A λ that was a method's best so far."""

    number: Whole
    """Its trial or outer step."""
    hyperparameters: dict[str, FiniteRow]
    cost: NonNegative
    """Plain training steps that the method had spent until then."""
    seconds: NonNegative
    own_loss: FloatOrInf
    """The validation loss that the method saw."""
    judgements: Annotated[list[Judgement], Field(min_length=1)]

    @property
    def judged_loss(self) -> float:
        """The mean over the fresh seeds; infinite if one run diverged."""
        return statistics.fmean(judgement.val_loss for judgement in self.judgements)

    @property
    def judged_accuracy(self) -> float | None:
        """The mean over fresh seeds of the validation accuracy."""
        return _mean(judgement.val_accuracy for judgement in self.judgements)

    @property
    def test_accuracy(self) -> float | None:
        """The mean over the judges' runs."""
        return _mean(judgement.test_accuracy for judgement in self.judgements)


@dataclass(frozen=True)
class MethodRun:
    """One search by one method."""

    method: str
    repetition: Whole
    trials: Whole
    """Trials or outer steps."""
    cost: NonNegative
    """In plain training steps."""
    seconds: NonNegative
    """Summed over ranks."""
    incumbents: list[Incumbent]
    """In order; the last is the method's answer."""
    note: str = ""
    """How the search ended, or ""."""
    retrained_accuracies: list[NotNaN] = field(default_factory=list)
    """Test accuracies after training with the answer on all training data, one per seed; empty without retraining."""

    @property
    def answer(self) -> Incumbent | None:
        """The best λ by the method's own measurements; None if no whole run has a finite loss."""
        return self.incumbents[-1] if self.incumbents else None

    @property
    def test_accuracy(self) -> float | None:
        """The mean after retraining; without retraining, the mean over the judges' runs."""
        if self.retrained_accuracies:
            return statistics.fmean(self.retrained_accuracies)
        return None if self.answer is None else self.answer.test_accuracy

    def cost_to_reach(self, loss: float) -> float | None:
        """What had been spent when the incumbent was first judged at `loss` or better; None if it never was."""
        return next((incumbent.cost for incumbent in self.incumbents if incumbent.judged_loss <= loss), None)


class Reach(NamedTuple):
    """The compute that a method needs until it is judged as good as the reference's answer."""

    factor: Spread | None
    """In units of the reference's compute, over the repetitions in which the method reached the answer."""
    reached: int
    repetitions: int
    within: float
    """All compute of the method in the same units. A method that did not reach the answer needs more than this."""


@dataclass(frozen=True)
class Comparison:
    """All searches of all methods."""

    horizon: Count
    """Inner steps of a run."""
    budget: NonNegative
    """Of each search, in plain training steps."""
    world_size: Count
    judge_seeds: Whole
    estimator: str
    search_space: dict[str, dict[str, Any]]
    """Name → low, high, scale and buckets, for each hyperparameter that the black boxes search."""
    runs: list[MethodRun]

    @property
    def methods(self) -> list[str]:
        """In the order of the config."""
        return list(dict.fromkeys(run.method for run in self.runs))

    def runs_of(self, method: str) -> list[MethodRun]:
        """One per repetition."""
        return [run for run in self.runs if run.method == method]

    def reach(self, method: str) -> Reach | None:
        """The compute of `method` relative to the reference; None if there is nothing to compare."""
        references = {run.repetition: run for run in self.runs_of(REFERENCE)}
        factors, within = [], []
        for run in self.runs_of(method):
            reference = references.get(run.repetition)
            if reference is None or reference.answer is None or not math.isfinite(reference.answer.judged_loss):
                continue
            target = reference.answer.judged_loss
            unit = reference.cost_to_reach(target)
            assert unit is not None  # its own answer reaches it
            cost = run.cost_to_reach(target)
            factors.append(None if cost is None else cost / unit)
            within.append(run.cost / unit)
        if not factors:
            return None
        reached = sum(factor is not None for factor in factors)
        return Reach(spread(factors), reached, len(factors), statistics.fmean(within))

    def to_json(self) -> str:
        """JSON text; infinite losses are null. Contains a summary per method, for other programs."""
        content = to_values(self)
        for run, run_values in zip(self.runs, content["runs"], strict=True):
            for incumbent, values in zip(run.incumbents, run_values["incumbents"], strict=True):
                values["judged_loss"] = to_values(incumbent.judged_loss)
        summary = to_values({method: self._summary(method) for method in self.methods})
        return json.dumps({"format": FORMAT, **content, "summary": summary}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Reads `compare.json`, or the folder that holds it.

        Raises:
            UserError: the file is missing, or is not a comparison.
        """
        file = Path(path)
        file = file / "compare.json" if os.path.isdir(file) else file
        try:
            content = read_json(file)
        except (OSError, ValueError) as error:
            raise UserError(Fault(str(file), f"cannot be read ({error})", "a compare.json")) from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(Fault(str(file), "is not a comparison", f'an object with "format": "{FORMAT}"'))
        try:
            return from_values(cls, content)
        except ValueError as error:
            raise UserError(Fault(str(file), f"is damaged ({error})", "a compare.json")) from None

    def _summary(self, method: str) -> dict[str, Any]:
        runs = self.runs_of(method)
        answers = [run.answer for run in runs if run.answer is not None]
        figures = {
            "own_loss": spread(answer.own_loss for answer in answers),
            "judged_loss": spread(answer.judged_loss for answer in answers),
            "judged_accuracy": spread(answer.judged_accuracy for answer in answers),
            "test_accuracy": spread(run.test_accuracy for run in runs),
            "cost": spread(run.cost for run in runs),
            "seconds": spread(run.seconds for run in runs),
        }
        reach = self.reach(method)
        plain = {name: _spread(figure) for name, figure in figures.items()}
        return {**plain, "reach": reach and {**reach._asdict(), "factor": _spread(reach.factor)}}


def _mean(numbers: Iterable[float | None]) -> float | None:
    present: Sequence[float] = [number for number in numbers if number is not None]
    return statistics.fmean(present) if present else None


def _spread(figure: Spread | None) -> dict[str, float | None] | None:
    """The figure as in `compare.json`."""
    return figure and {"mean": figure.mean, "deviation": figure.std}
