"""What an inner run tells about λ: validation loss, its gradient by the weights, and the hypergradients.

Shapes: D = weights, K = learned numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fds_dist.common.batch import checked_batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import ALONE, Keeper, OnStep
from fds_dist.tangents import Network, differentiate
from fds_dist.tasks.base import validation_loss


@dataclass(frozen=True)
class Validation:
    """The mean over all validation samples."""

    loss: float
    accuracy: float | None
    """Share of right answers where targets are class indices, else None."""
    gradient: Tensor  # [D] this rank's part of ∇L_val; the parts of the `data` axis add up to it


def validate(
    problem: Problem, network: Network, weights: Tensor, outer_step: int, axis: DataAxis = ALONE
) -> Validation:
    """L_val and ∇L_val at `weights` [D], over `val_batches(outer_step)`; batches weigh by their samples.

    Batch-norm uses the statistics of each validation batch, as in the paper, unless `val_batch_norm` is "running".
    Leaves the network in evaluation mode.

    Raises:
        UserError: there are no validation samples.
    """
    network.evaluate(problem.val_batch_norm)
    network.statistics.average(axis.sum, axis.size)
    loss_of = validation_loss(problem.task)
    gradient = torch.zeros_like(weights)
    total_loss = torch.zeros((), dtype=torch.float64, device=weights.device)
    right: Tensor | None = torch.zeros((), dtype=torch.float64, device=weights.device)
    samples, answers = 0, 0.0
    for batch in problem.task.val_batches(outer_step):
        whole = checked_batch(batch, "val_batches")
        part, network.share = axis.split(whole)
        inputs, targets = network.cast(part)
        leaf = weights.detach().requires_grad_()
        output, _ = network(leaf, inputs)
        loss = loss_of(output, targets) * network.share.fraction
        count = len(whole[1])
        gradient += differentiate(loss, leaf)[0] * count
        total_loss += loss.detach() * count
        samples += count
        hits = right_answers(output, targets)
        weight = network.share.fraction * count / len(targets)  # below 1 where every rank has the whole batch
        right = None if hits is None or right is None else right + hits * weight
        answers += targets.numel() * weight
    if not samples:
        raise UserError(Fault("task", f"val_batches(outer_step={outer_step}) gave no batch", "at least one"))
    loss = axis.sum(total_loss).item() / samples
    accuracy = None if right is None else (axis.sum(right) / axis.sum(right.new_tensor(answers))).item()
    return Validation(loss, accuracy, gradient / samples)


def right_answers(output: Tensor, targets: Tensor) -> Tensor | None:
    """How many class indices `targets` [...] are the largest of `output` [..., classes]; None if they are none."""
    if targets.is_floating_point() or output.shape[:-1] != targets.shape:
        return None
    return (output.detach().argmax(-1) == targets).sum()


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
