"""Independent inner runs side by side, and the mean of what they tell: noise falls as one over their number.

Replica r of R in outer step s has the weights, split, batches and random numbers of outer step s·R + r of a run without
replicas, so that the mean can be checked against single runs, and any task serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.estimators import Estimate


def run_number(outer_step: int, ranks: Ranks) -> int:
    """Which outer step's random numbers this rank's inner run of `outer_step` draws."""
    return outer_step * ranks.shape.replica + ranks.replica


def mean_over_replicas(estimate: Estimate, ranks: Ranks) -> Estimate:
    """The mean of all replicas' estimates with the spread of their hypergradients, the same on every rank.

    One replica whose run was lost (NaN) makes the mean NaN: the outer rule treats it as any lost run.
    """
    if ranks.shape.replica == 1:
        return estimate
    accuracy = math.nan if estimate.val_accuracy is None else estimate.val_accuracy
    rows = ranks.gather_numbers("replica", [*estimate.hypergradients, estimate.val_loss, accuracy])
    *hypergradients, val_loss, accuracy = [_mean(column) for column in zip(*rows, strict=True)]
    return replace(
        estimate,
        hypergradients=hypergradients,
        val_loss=val_loss,
        val_accuracy=None if estimate.val_accuracy is None else accuracy,
        spread=[_deviation(column) for column in list(zip(*rows, strict=True))[: len(hypergradients)]],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of one replica, from a sample of them."""
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
