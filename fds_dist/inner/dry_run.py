"""A trial before any training: the task's batches, the network and the losses, once each, on their first batches.

What goes wrong in a person's own code is then one line that names the place, not a traceback through the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import replace

import torch
from torch import Tensor

from fds_dist.common.batch import checked_batch
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.randomness import seeded
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import initial_state
from fds_dist.schedule.buckets import Segment
from fds_dist.tangents import Batch, Network, TrainingLoss
from fds_dist.tangents.methods import choose_method
from fds_dist.tasks.base import validation_loss

FEW = 4
"""Samples on which the second derivatives are tried: whether an operator has one does not depend on their number, and a
large network's whole batch may take more memory than a rank's part of it."""


def tried(problem: Problem, method: str) -> tuple[Problem, str]:
    """The problem with a method of Hessian-vector products that works on its network, and a remark about it.

    Args:
        method: `tangents.method` of the config.

    Raises:
        UserError: a batch is no pair of tensors or there is none, the network or a loss fails on the first batch, a
            loss is not one differentiable number, or the method cannot differentiate them.
    """
    network = problem.network(0)
    weights = initial_state(problem, network).weights
    first = Segment(0, 1, dict.fromkeys(problem.space.bucket_counts, 0))
    theta = problem.theta(problem.values_in(first, problem.space.initial()))
    with seeded(problem.step_seed(0, 0)):
        with user_code("task.train_batches", "train_batches(outer_step=0, epoch=0)"):
            _count_batches(problem)
            batch = network.cast(next(problem.batches(0)))
        extra = (dict(zip(problem.loss_hyperparameters, theta.unbind(), strict=True)),) if len(theta) else ()
        _try_loss("loss", network, weights, batch, lambda output, target: problem.task.loss(output, target, *extra))
        loss = problem.training_loss(network)
        few = _few_samples(loss, weights, theta, batch)
        chosen, remark = choose_method(method, loss, weights, theta, few, problem.chunk_size > 1)
        _try_validation(problem, network, weights)
    return replace(problem, tangents=replace(problem.tangents, method=chosen)), remark


def _few_samples(loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch) -> Batch:
    """The first samples of a batch, where network and loss take fewer; else all of it."""
    inputs, targets = batch
    if inputs.dim() == 0 or targets.dim() == 0 or not FEW < len(inputs) == len(targets):
        return batch
    few = inputs[:FEW], targets[:FEW]
    try:
        with torch.no_grad():
            loss(weights, theta, few)
    except Exception:  # it wants batches of one size
        return batch
    return few


def _count_batches(problem: Problem) -> None:
    """Finds an epoch that is too short before training comes to its end, where the task's batches can be counted."""
    batches, expected = problem.task.train_batches(0, 0), problem.task.steps_per_epoch
    if isinstance(batches, Sized) and len(batches) < expected:
        given = f"train_batches(outer_step=0, epoch=0) has {len(batches)} batches"
        raise UserError(Fault("task.train_batches", given, f"at least steps_per_epoch = {expected}"))


def _try_validation(problem: Problem, network: Network, weights: Tensor) -> None:
    """The validation loss on the first validation batch of the first outer step."""
    with user_code("task.val_batches", "val_batches(outer_step=0)"):
        given = next(iter(problem.task.val_batches(0)), None)
    if given is None:
        raise UserError(Fault("task.val_batches", "val_batches(outer_step=0) gave no batch", "at least one"))
    network.evaluate(problem.val_batch_norm)
    name = "val_loss" if getattr(problem.task, "val_loss", None) else "loss"
    batch = network.cast(checked_batch(given, "val_batches"))
    _try_loss(name, network, weights, batch, validation_loss(problem.task))


def _try_loss(
    name: str, network: Network, weights: Tensor, batch: Batch, loss_of: Callable[[Tensor, Tensor], object]
) -> None:
    """Network and loss on one batch; the loss must be one number that can be differentiated by the weights."""
    inputs, targets = batch
    with user_code("model", "the network", f" on inputs {_described(inputs)}"):
        output, _ = network(weights.detach().requires_grad_(), inputs)
    given = f" on output {_described(output)} and target {_described(targets)}"
    with user_code(f"task.{name}", f"{name}(output, target)", given):
        loss = loss_of(output, targets)
    expected = "a differentiable scalar tensor, the mean over the batch"
    if not isinstance(loss, Tensor) or loss.shape != ():
        problem = f"{name}(output, target) returned {_described(loss)}{given}"
        raise UserError(Fault(f"task.{name}", problem, expected))
    if not loss.requires_grad:
        problem = f"{name}(output, target) returned a number cut off from the weights (by detach, item or argmax?)"
        raise UserError(Fault(f"task.{name}", problem, expected))


def _described(value: object) -> str:
    """`[64, 10] float32` for a tensor, else the type's name."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
