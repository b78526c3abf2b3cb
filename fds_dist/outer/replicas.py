"""Replicas: independent inner runs side by side.

The mean of their hypergradients counts, and its variance falls as one over their number.
Replica r of R in outer step s has the weights, split, batches and random numbers of outer step s·R + r of a run without
replicas. The mean can therefore be checked against single runs, and every task works with replicas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimators import Estimate


def run_number(outer_step: int, ranks: Ranks) -> int:
    """The outer step whose random numbers this rank's inner run of `outer_step` draws."""
    return outer_step * ranks.shape.replica + ranks.replica


def mean_over_replicas(estimate: Estimate, ranks: Ranks) -> Estimate:
    """The mean of all replicas' estimates with the spread of their hypergradients, the same on every rank.

    One replica whose run diverged (NaN) makes the mean NaN; the outer rule treats it like any run that diverged.
    """
    if ranks.shape.replica == 1:
        return estimate
    accuracy = math.nan if estimate.val_accuracy is None else estimate.val_accuracy
    numbers = [*estimate.hypergradients, estimate.val_loss, accuracy, *estimate.metrics.values()]
    columns = list(zip(*ranks.gather_numbers("replica", numbers), strict=True))
    known = len(estimate.hypergradients)
    val_loss, accuracy, *metrics = [_mean(column) for column in columns[known:]]
    return replace(
        estimate,
        hypergradients=[_mean(column) for column in columns[:known]],
        val_loss=val_loss,
        val_accuracy=None if math.isnan(accuracy) else accuracy,
        spread=[_deviation(column) for column in columns[:known]],
        metrics=dict(zip(estimate.metrics, metrics, strict=True)),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of one replica, estimated from all."""
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
