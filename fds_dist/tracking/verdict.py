"""What the judging of a search's candidates has shown: the content of ``judged.json``, and its words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import Field

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.records import Count, FloatOrInf, NotNaN, Whole, from_line, to_values
from fds_dist.common.words import counted, number_text, percent, spread

DESCRIBED = {
    "average": "the mean of the last values",
    "best": "the values with the lowest validation loss in the search",
    "last": "the values after the last update",
    "start": "the values that the search began with",
}
"""The name of a candidate → what it is."""


@dataclass(frozen=True)
class JudgedCandidate:
    """One candidate's runs on the fresh seeds, in the order of the seeds."""

    val_losses: Annotated[list[FloatOrInf], Field(min_length=1)]
    """Infinite where the run diverged."""
    val_loss: FloatOrInf
    """Their mean."""
    val_loss_error: NotNaN | None
    """The standard error of the mean; None for one seed, and where a run diverged."""
    val_accuracy: NotNaN | None
    """The mean; None where it is not meant, or a run diverged."""
    outer_step: Whole | None
    """The outer step that trained with these very values; None where none did."""

    @classmethod
    def of(
        cls, losses: Sequence[float], accuracies: Sequence[float | None], outer_step: int | None = None
    ) -> JudgedCandidate:
        """The candidate with the losses and accuracies of its runs, one per seed."""
        loss, known = spread(losses), [accuracy for accuracy in accuracies if accuracy is not None]
        error = None if loss is None or loss.std is None else loss.std / math.sqrt(len(losses))
        accuracy = fmean(known) if len(known) == len(losses) else None
        return cls(list(losses), fmean(losses), error, accuracy, outer_step)

    @property
    def lost(self) -> int:
        """How many of its runs diverged."""
        return sum(not math.isfinite(loss) for loss in self.val_losses)

    def __str__(self) -> str:
        """`val loss 0.0612 ± 0.0021, val accuracy 98.6%`."""
        if self.lost:
            return f"diverged on {self.lost} of {counted(len(self.val_losses), 'seed')}"
        error = "" if self.val_loss_error is None else f" ± {number_text(self.val_loss_error, 2)}"
        accuracy = "" if self.val_accuracy is None else f", val accuracy {percent(self.val_accuracy)}"
        return f"val loss {number_text(self.val_loss)}{error}{accuracy}"


@dataclass(frozen=True)
class Verdict:
    """All candidates, trained by plain runs of `horizon` steps on the same `seeds` fresh seeds."""

    result: str
    """The candidate that is the result: the one with the lowest mean loss."""
    seeds: Count
    horizon: Count
    candidates: dict[str, JudgedCandidate]
    """average, best, last and start, as far as there are such."""

    @classmethod
    def of(cls, seeds: int, horizon: int, candidates: dict[str, JudgedCandidate]) -> Verdict:
        """The verdict on `candidates`; of equal ones the first is the result."""
        result = min(candidates, key=lambda name: (candidates[name].val_loss, candidates[name].lost))
        return cls(result, seeds, horizon, candidates)

    @property
    def judged_on(self) -> str:
        """`judged on 3 fresh seeds`."""
        return f"judged on {counted(self.seeds, 'fresh seed')}"

    @property
    def headline(self) -> str:
        """What the search was worth: `from 89.5% to 98.6% validation accuracy (val loss 0.35 to 0.061), ...`."""
        start, result = self.candidates["start"], self.candidates[self.result]
        if self.result == "start":
            return f"no learned values did better than the start ({start}), {self.judged_on}"
        losses = f"val loss {_loss(start)} to {_loss(result)}"
        if start.val_accuracy is None or result.val_accuracy is None:
            return f"from {losses}, {self.judged_on}"
        accuracies = f"{percent(start.val_accuracy)} to {percent(result.val_accuracy)}"
        return f"from {accuracies} validation accuracy ({losses}), {self.judged_on}"

    @property
    def figures(self) -> dict[str, float]:
        """The finite numbers under flat names, for dashboards: `judged/average/val_loss`."""
        numbers = {
            f"judged/{name}/{key}": getattr(candidate, key)
            for name, candidate in self.candidates.items()
            for key in ("val_loss", "val_loss_error", "val_accuracy")
        }
        return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}

    def to_json(self) -> str:
        """Strict JSON; infinities become null."""
        return json.dumps(to_values(self), indent=2) + "\n"


def read_verdict(path: Path) -> Verdict | None:
    """The verdict in a file; None where there is no file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        return None
    try:
        verdict = from_line(Verdict, path.read_bytes())
        if missing := {"start", verdict.result} - verdict.candidates.keys():
            raise ValueError(f"candidates lacks {', '.join(sorted(missing))}")
        return verdict
    except (OSError, ValueError) as error:
        raise UserError(Fault("", f"{path} is not the verdict of a search: {error}", "a run's judged.json")) from None


def _loss(candidate: JudgedCandidate) -> str:
    return "infinity" if candidate.lost else number_text(candidate.val_loss)
