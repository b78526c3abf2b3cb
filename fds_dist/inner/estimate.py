"""What an inner run tells about λ: validation loss, its gradient by the weights, and the hypergradients.

Shapes: D = weights, K = learned numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fds_dist.common.batch import Batch, checked_batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents import Buffers, Network, differentiate
from fds_dist.tasks.base import Task, validation_loss


@dataclass(frozen=True)
class Evaluation:
    """The mean over all samples of some batches."""

    loss: float
    accuracy: float | None
    """Share of right answers where targets are class indices, else None."""
    gradient: Tensor | None = None  # [D] this rank's part of ∇L; the parts of the `data` axis add up to it
    buffer_gradients: Buffers = field(default_factory=dict)
    """This rank's part of the gradient by each live buffer."""


class Mean:
    """Loss and accuracy over batches, weighed by their samples; stays on the device until it is read."""

    def __init__(self) -> None:
        self.samples = self.answers = 0
        self._loss: Tensor | float = 0.0
        self._right: Tensor | float | None = 0.0

    def add(self, loss: Tensor, output: object, targets: Tensor) -> int:
        """Takes the mean `loss` [] of a batch, and counts its right answers; returns the number of its samples."""
        count = len(targets) if targets.dim() else 1
        self._loss = self._loss + loss.detach().double() * count
        hits = right_answers(output, targets)
        self._right = None if hits is None or self._right is None else self._right + hits
        self.answers += targets.numel()
        self.samples += count
        return count

    @property
    def loss(self) -> float:
        """Of all batches so far, one at least."""
        return float(self._loss) / self.samples

    @property
    def accuracy(self) -> float | None:
        """None where a batch had targets that are no class indices."""
        return None if self._right is None else float(self._right) / self.answers


def evaluate(
    problem: Problem,
    network: Network,
    state: InnerState,
    batches: Iterable[Batch],
    batch_norm: str,
    axis: DataAxis | None = None,
    with_gradient: bool = False,
) -> Evaluation | None:
    """The validation loss at `state` over `batches`, each split along `axis`; None where there is no batch.

    Leaves the network in evaluation mode.

    Args:
        batch_norm: `batch` or `running`: whose statistics batch-norm uses.
        with_gradient: whether to give the gradient by the weights and the live buffers too.
    """
    axis = axis or DataAxis()
    network.evaluate(batch_norm)
    buffers = network.averaged(state.buffers, axis.sum, axis.size)
    loss_of, mean = validation_loss(problem.task), Mean()
    leaves = {name: buffers[name].detach().requires_grad_(with_gradient) for name in network.live}
    weights = state.weights.detach().requires_grad_(with_gradient)
    totals = [torch.zeros_like(leaf) for leaf in (weights, *leaves.values())] if with_gradient else []
    for batch in batches:
        part = network.cast(axis.split(batch))
        with torch.set_grad_enabled(with_gradient):
            output, _ = network(weights, {**buffers, **leaves}, part.inputs, part.share)
            loss = loss_of(output, part.targets)
        count = mean.add(loss, output, part.targets)
        if with_gradient:
            gradients = differentiate(loss, (weights, *leaves.values()), materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient * count
    if not mean.samples:
        return None
    gradient, *by_buffers = [total / mean.samples for total in totals] or [None]
    return Evaluation(mean.loss, mean.accuracy, gradient, dict(zip(leaves, by_buffers, strict=False)))  # type: ignore[arg-type]


def validate(
    problem: Problem,
    network: Network,
    state: InnerState,
    number: int,
    axis: DataAxis | None = None,
    with_gradient: bool = True,
) -> Evaluation:
    """L_val and its gradient at `state` over the validation batches of outer step `number`.

    Batch-norm uses the statistics of each validation batch, as in the paper, unless `val_batch_norm` is "running".

    Raises:
        UserError: there are no validation samples.
    """
    batches = checked_batches(problem.task, "val_batches", number)
    evaluation = evaluate(problem, network, state, batches, problem.val_batch_norm, axis, with_gradient)
    if evaluation is None:
        raise UserError(Fault("task", f"val_batches(outer_step={number}) gave no batch", "at least one"))
    return evaluation


def checked_batches(task: Task, source: str, *arguments: int) -> Iterable[Batch]:
    """The batches that the task's function `source` gives for `arguments`, each checked."""
    batches: Callable[..., Iterable[object]] = getattr(task, source)
    return (checked_batch(batch, source) for batch in batches(*arguments))


def right_answers(output: object, targets: Tensor) -> Tensor | None:
    """How many class indices `targets` [...] are the largest of `output` [..., classes]; None if they are none."""
    if not isinstance(output, Tensor) or targets.is_floating_point() or output.shape[:-1] != targets.shape:
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


def lost_run(run: InnerRun, validation: Evaluation) -> Estimate:
    """The estimate of a run that ended before its horizon: the derivatives of a part of it would mislead."""
    return Estimate([math.nan] * run.problem.space.size, validation.loss, validation.accuracy)


Estimator = Callable[[InnerRun], Estimate]
"""One inner run and its hypergradients. Called on all ranks of the run alike; every one of them returns the same
estimate. A run that was cut off goes on from what its checkpointer has, where the estimator can: `forward` does, the
others start anew."""
