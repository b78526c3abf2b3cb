"""The signature that all estimators share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.inner_run import Keeper, OnStep
from fds_dist.engine.problem import Problem
from fds_dist.engine.validation import Validation


@dataclass(frozen=True)
class Estimate:
    """What one inner run, or the mean of several, tells about λ."""

    hypergradients: list[float]
    """[K] dL_val(w_T)/dλ_k, not averaged over the bucket's window."""
    val_loss: float
    val_accuracy: float | None
    spread: list[float] | None = None
    """[K] standard deviation of one replica's hypergradient; None where there is one replica."""


def lost_run(problem: Problem, validation: Validation) -> Estimate:
    """The estimate of a run that ended before its horizon: the derivatives of a part of it would mislead."""
    return Estimate([math.nan] * problem.space.size, validation.loss, validation.accuracy)


class Estimator(Protocol):
    """One inner run of `horizon` steps with λ = `values` [K], and its hypergradients.

    Called on all ranks of an inner run with the same arguments; every one of them returns the same estimate. One that
    was cut off goes on from what `keeper` has, where the estimator can: `forward` does, the others start anew.
    """

    def __call__(
        self,
        problem: Problem,
        values: Sequence[float],
        outer_step: int,
        horizon: int,
        ranks: Ranks,
        on_step: OnStep,
        keeper: Keeper | None = None,
    ) -> Estimate: ...
