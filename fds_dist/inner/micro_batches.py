"""Tried before training: whether a task's batches can be cut into micro-batches, and what its loss makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.batch import Batch, Part, common_rows, described, micro_batches
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import counted
from fds_dist.inner.problem import Problem
from fds_dist.inner.tolerance import relative
from fds_dist.tangents.methods import TrialPoint
from fds_dist.tasks.losses import OnBatch

ROUNDING = 1e-4
"""Of a mean over samples taken in parts, in float32: far above 1e-7 times some hundred samples, far below what weights
that depend on the whole batch change."""


def check_micro_batches(problem: Problem, batch: Batch) -> None:
    """Whether a run's first `batch` can be cut into `problem.accumulate` parts.

    Raises:
        UserError: it cannot.
    """
    if problem.accumulate == 1:
        return
    rows = common_rows(batch)
    if rows is None:
        text = f"the samples of {described(batch)} cannot be told apart"
        raise UserError(Fault("inner.accumulate", text, "1 for this task"))
    if rows < problem.accumulate:
        text = f"{problem.accumulate} micro-batches of {counted(rows, 'sample')}"
        raise UserError(Fault("inner.accumulate", text, f"at most the batch's {counted(rows, 'sample')}"))


def smallest_micro_batch(problem: Problem, smallest: tuple[str, Batch] | None) -> tuple[str, Batch] | None:
    """The smallest part that a step sees, and where it is: of the `smallest` batch, or of the first if that is None."""
    if problem.accumulate == 1:
        return smallest
    where, batch = smallest or ("batch 0 of train_batches(outer_step=0, epoch=0)", next(problem.batches(0)))
    return f"the last micro-batch of {where}", micro_batches(batch, problem.accumulate)[-1][0]


def separability(problem: Problem, point: TrialPoint) -> str:
    """A remark where the loss of the first whole batch is not the mean over its micro-batches, by samples.

    Both are of the same outputs, those of the micro-batches, so that batch-norm and dropout make no difference.
    """
    if problem.accumulate == 1:
        return ""
    network, batch, loss_of = point.loss.network, next(problem.batches(0)), OnBatch(problem.task.loss)
    extra = problem.loss_arguments(problem.named(point.theta))
    outputs, summed = [], 0.0
    with torch.no_grad():
        for micro_batch, fraction in micro_batches(batch, problem.accumulate):
            part = network.cast(Part(micro_batch))
            output, _ = network(point.weights, point.buffers, part.inputs)
            outputs.append(output)
            summed += float(loss_of(output, part.batch, *extra)) * fraction
        at_once = float(loss_of(tree_map(_joined, *outputs), network.cast(Part(batch)).batch, *extra))
    if relative(summed, at_once) <= ROUNDING:
        return ""
    return (
        f"inner.accumulate: the loss is applied to each micro-batch, and is no mean over samples: {summed:.4g} on "
        f"average, where the whole batch has {at_once:.4g}"
    )


def _joined(*leaves: Any) -> Any:
    """The rows of all micro-batches."""
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) and leaves[0].dim() else leaves[0]
