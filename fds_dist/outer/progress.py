"""Where an outer loop stands between two outer steps, and when it ends."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from fds_dist.common.records import Count, Finite, FloatOrInf, NonNegative, NotNaN, Whole, from_values
from fds_dist.common.words import duration
from fds_dist.inner.problem import Problem
from fds_dist.outer.rules import OuterRule, OuterState

ROOM = 1.25
"""Times the best validation loss so far: a run within that has not diverged."""


@dataclass(frozen=True)
class OuterSettings:
    """When the outer loop ends."""

    horizons: tuple[int, ...]
    """Inner steps of each outer step."""
    nonfinite_patience: int = 3
    """After this many outer steps in a row with a hypergradient that is not finite, the run ends with an error."""
    retreat: bool = False
    """Whether to return to the best λ, with half the steps, after an inner run that has `diverged`."""
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

    outer_step: Whole
    """Outer steps done."""
    values: list[Finite]
    """[K] λ for the next outer step."""
    state: OuterState
    horizon: Count
    """The inner steps of the last outer step, and of the schedule."""
    converged: bool = False
    best: tuple[Whole, list[Finite], Finite, NotNaN | None] | None = None
    """(outer step, its λ, validation loss, accuracy) of the lowest validation loss so far."""
    first_val_loss: FloatOrInf = math.inf
    """The validation loss of the first outer step; infinite if that run diverged."""
    seconds: NonNegative = field(default=0.0, compare=False)
    """The time of all outer steps by the clock of rank 0, earlier starts included."""

    def diverged(self, val_loss: float) -> bool:
        """Whether a run that ended with `val_loss` has diverged, as one that ended with NaN has.

        Worse than the very first is no sign of it where that one began at what is known to work: the noise of a
        validation loss is larger than what is then left to gain.
        """
        limit = self.first_val_loss if self.best is None else max(self.first_val_loss, ROOM * self.best[2])
        return not val_loss <= limit

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OuterProgress:
        """The inverse of `to_dict`, also from values that were read from JSON.

        Raises:
            ValueError: the content is no such state.
        """
        progress = from_values(cls, content)
        lengths = {
            len(progress.values),
            len(progress.state.elements),
            len(progress.best[1] if progress.best else progress.values),
        }
        if len(lengths) > 1:
            raise ValueError(f"values, elements and best are of {', '.join(map(str, sorted(lengths)))} numbers")
        if progress.best and progress.best[0] >= progress.outer_step:
            raise ValueError(f"best is of outer step {progress.best[0]}, of {progress.outer_step} done")
        return progress


def initial_progress(problem: Problem, rule: OuterRule, settings: OuterSettings) -> OuterProgress:
    """The progress before the first outer step."""
    values = problem.space.initial()
    return OuterProgress(0, values, rule.init(problem.space), settings.horizons[0])
