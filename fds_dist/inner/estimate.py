"""What an inner run tells about λ: validation loss, its gradient by the weights, and the hypergradients.

Shapes: D = weights, K = learned numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.inner.data_checks import check_run_data
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents import Buffers, Network
from fds_dist.tasks.base import validation_loss
from fds_dist.tasks.losses import OnBatch
from fds_dist.tasks.metrics import Mean, Score


@dataclass(frozen=True)
class Evaluation:
    """The mean over all samples of some batches. The figures stay on the device until they are asked for."""

    mean: Mean
    gradient: Tensor | None = None  # [D] this rank's part of ∇L; the parts of the `data` axis add up to it
    buffer_gradients: Buffers = field(default_factory=dict)
    """This rank's part of the gradient by each live buffer."""

    @cached_property
    def score(self) -> Score:
        """The figures, for which the host waits."""
        return self.mean.score()

    @property
    def loss(self) -> float:
        """See `Score`."""
        return self.score.loss

    @property
    def accuracy(self) -> float | None:
        """See `Score`."""
        return self.score.accuracy

    @property
    def metrics(self) -> dict[str, float]:
        """See `Score`."""
        return self.score.metrics


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
        state: with the weights that are judged; see `fds_dist.inner.training.judged_state`.
        batch_norm: `batch` or `running`: whose statistics batch-norm uses.
        with_gradient: whether to give the gradient by the weights and the live buffers too.
    """
    axis = axis or DataAxis()
    network.evaluate(batch_norm)
    buffers = network.averaged(state.buffers, axis.sum, axis.size)
    loss_of, mean = OnBatch(validation_loss(problem.task)), Mean(problem.task)
    leaves = {name: buffers[name].detach().requires_grad_(with_gradient) for name in network.live}
    weights = state.weights.detach().requires_grad_(with_gradient)
    totals = [torch.zeros_like(leaf) for leaf in (weights, *leaves.values())] if with_gradient else []
    for batch in batches:
        part = network.cast(axis.split(batch, problem.reads_inputs))
        with torch.set_grad_enabled(with_gradient):
            output, _ = network(weights, {**buffers, **leaves}, part.inputs, part.share)
            with network.autocast():
                loss = loss_of(output, part.batch)
        count = mean.add(loss, output, part.batch)
        if with_gradient:
            gradients = network.differentiate(loss, (weights, *leaves.values()), materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient * count
    if not mean.samples:
        return None
    gradient, *by_buffers = [total / mean.samples for total in totals] or [None]
    return Evaluation(mean, gradient, dict(zip(leaves, by_buffers, strict=False)))  # type: ignore[arg-type]


def validate(
    problem: Problem,
    network: Network,
    state: InnerState,
    number: int,
    axis: DataAxis | None = None,
    with_gradient: bool = True,
) -> Evaluation:
    """L_val and its gradient at `state`, as for `evaluate`, over the validation batches of outer step `number`.

    Batch-norm uses the statistics of each validation batch, as in the paper, unless `val_batch_norm` is "running".

    Raises:
        UserError: there are no validation samples.
    """
    batches = problem.batches_of("val_batches", number)
    evaluation = evaluate(problem, network, state, batches, problem.val_batch_norm, axis, with_gradient)
    if evaluation is None:
        raise UserError(Fault("task", f"val_batches(outer_step={number}) gave no batch", "at least one"))
    return evaluation


@dataclass(frozen=True)
class Estimate:
    """What one inner run, or the mean of several, tells about λ."""

    hypergradients: list[float]
    """[K] dL_val(w_T)/dλ_k, not averaged over the bucket's window."""
    val_loss: float
    val_accuracy: float | None
    spread: list[float] | None = None
    """[K] standard deviation of one replica's hypergradient; None where there is one replica."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The task's own of the validation data, but for the accuracy."""


def finished_run(run: InnerRun, validation: Evaluation, hypergradients: list[float]) -> Estimate:
    """The estimate of a run over its whole horizon, with its hypergradients [K].

    Raises:
        UserError: the numbers are not finite because a batch is not.
    """
    if not all(map(math.isfinite, [validation.loss, *hypergradients])):
        check_run_data(run.problem, run.number, run.horizon)
    return Estimate(hypergradients, validation.loss, validation.accuracy, metrics=validation.metrics)


def lost_run(run: InnerRun, validation: Evaluation, steps: int) -> Estimate:
    """The estimate of a run that ended after `steps`, before its horizon: derivatives of a part would mislead.

    Raises:
        UserError: the run was lost because a batch is not finite.
    """
    check_run_data(run.problem, run.number, steps)
    nothing = [math.nan] * run.problem.space.size
    return Estimate(nothing, validation.loss, validation.accuracy, metrics=validation.metrics)


Estimator = Callable[[InnerRun], Estimate]
"""One inner run and its hypergradients. Called on all ranks of the run alike; every one of them returns the same
estimate. A run that was cut off goes on from what its checkpointer has."""
