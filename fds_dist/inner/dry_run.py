"""A trial before any training: the task's batches, the network and the losses, once each, on their first batches.

What goes wrong in a person's own code is then one line that names the place, not a traceback through the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fds_dist.common.batch import (
    Batch,
    Part,
    common_rows,
    described,
    first_samples,
    micro_batches,
    samples_in,
    targets_of,
    tensors_in,
)
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.randomness import seeded
from fds_dist.common.words import counted
from fds_dist.inner.augment_check import check_augment
from fds_dist.inner.compile_choice import without_compile_where_wrong
from fds_dist.inner.data_checks import check_repeatable, smallest_train_batch, smallest_val_batch
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.kernels import deterministic_kernels, run_kernels
from fds_dist.inner.live_buffers import check_derivatives, live_buffers
from fds_dist.inner.micro_batches import check_micro_batches, separability, smallest_micro_batch
from fds_dist.inner.problem import Problem
from fds_dist.inner.testimony import raised_to_float64, testimony, untouched_parameters
from fds_dist.inner.training import initial_state
from fds_dist.tangents.methods import TrialPoint, ancestors, choose_method, difference_error
from fds_dist.tasks.base import validation_loss
from fds_dist.tasks.inspection import check_finite
from fds_dist.tasks.losses import OnBatch
from fds_dist.tasks.metrics import Mean

FEW = 4
"""Samples on which the second derivatives are tried: whether an operator has one does not depend on their number, and a
large network's whole batch may take more memory than a rank's part of it."""


def dry_run(
    problem: Problem, method: str, estimator: str = "forward", plain_steps: int = 0
) -> tuple[Problem, tuple[str, ...]]:
    """The problem as it can be run: with its live buffers, a method that works on its network, and what takes no part.

    Args:
        method: `tangents.method` of the config.
        estimator: its name in the config.
        plain_steps: how many steps may be compared with plain PyTorch; 0: none.

    Returns:
        The problem, and remarks for a person.

    Raises:
        UserError: what the task gives is no batch or there is none, the network or a loss fails on the first batch, a
            loss is not one differentiable number, the method cannot differentiate them, or plain PyTorch gives other
            numbers.
    """
    remarks = []
    with seeded(problem.step_seed(0, 0)):
        with deterministic_kernels():
            point, val_part = _tried_losses(problem)
            run_kernels(problem, method, _few_samples(point), val_part)
        if plain_steps and (untouched := untouched_parameters(problem, plain_steps)):
            problem = replace(problem, untouched=untouched)
            names = ", ".join(untouched[:3]) + (" ..." if len(untouched) > 3 else "")
            remarks.append(f"{names}: no part of training, and left as they are")
            point, val_part = _tried_losses(problem)
        remarks += [remark] if (remark := separability(problem, point)) else []
        if estimator != "greedy":  # whose hypergradients are derivatives by one step's weights, by definition
            problem = replace(problem, live_buffers=live_buffers(problem, point, val_part))
        reverse = estimator == "reverse"
        if method == "difference":
            problem = problem.by(method)
        if problem.live_buffers or method == "difference":
            point = _point(problem)
        if not (reverse and problem.live_buffers):
            chosen, remark = choose_method(method, _few_samples(point))
            problem = problem.by(chosen)
            remarks += [remark] if remark else []
            remarks += _difference_remarks(problem, reverse, remark) if chosen == "difference" else []
        problem, remark = without_compile_where_wrong(problem, _few_samples(point))
        remarks += [remark] if remark else []
        if problem.live_buffers and problem.tangents.method != "difference":  # which sees hidden dependence too
            with raised_to_float64(problem) as (_, exact):
                checked = problem.in_float64() if exact else problem
                check_derivatives(_point(checked), reverse)
        if plain_steps:
            remarks.append(str(testimony(problem, estimator, ESTIMATORS[estimator], plain_steps)))
    return problem, tuple(remarks)


def _difference_remarks(problem: Problem, reverse: bool, reason: str) -> list[str]:
    """How far differences of gradients are from exact products.

    Raises:
        UserError: they cannot serve this estimator or this network.
    """
    if reverse:
        why = f" ({reason})" if reason else ""
        raise UserError(Fault("estimator", f"reverse needs second derivatives{why}", "estimator=forward"))
    error, kind = difference_error(_few_samples(_point(problem))), str(problem.dtype).removeprefix("torch.")
    return [f"products by difference of gradients are right to about {error:.0e} in {kind}, on the first batch"]


def _point(problem: Problem) -> TrialPoint:
    """The training loss on the first batch, or the first micro-batch of it, at the initial state."""
    network = problem.network(0)
    state = initial_state(problem, network)
    theta = problem.theta(problem.first_numbers)
    with user_code("task.train_batches", "train_batches(outer_step=0, epoch=0)"):
        _count_batches(problem)
        batch = next(problem.batches(0))
    check_finite(batch, "task.train_batches", "batch 0 of train_batches(outer_step=0, epoch=0)", problem.dtype)
    check_micro_batches(problem, batch)
    part = network.cast(Part(micro_batches(batch, problem.accumulate)[0][0]))  # the largest
    loss, vectorize = problem.training_loss(network), problem.chunk_size > 1
    return TrialPoint(loss, state.weights, theta, state.buffers, part, vectorize)


def _tried_losses(problem: Problem) -> tuple[TrialPoint, Part]:
    """The first point of the training loss and the first validation batch, after each loss has been computed once."""
    point = _point(problem)
    network, theta = point.loss.network, point.theta
    check_augment(problem, point)
    extra = problem.loss_arguments(problem.named(theta))
    loss_of = OnBatch(problem.task.loss)
    _, output = _try_loss("loss", point, point.part, lambda output, batch: loss_of(output, batch, *extra))
    if extra:  # some arguments of PyTorch's losses, such as the weights of its cross-entropy, take no derivative
        with user_code("task.loss", "loss(output, target, hyperparameters), differentiated by the hyperparameters,"):
            loss_of(output, point.part.batch, problem.named(theta.detach().requires_grad_()))
    val_part = network.cast(Part(_first_val_batch(problem)))
    network.evaluate(problem.val_batch_norm)
    name = "val_loss" if getattr(problem.task, "val_loss", None) else "loss"
    loss, output = _try_loss(name, point, val_part, OnBatch(validation_loss(problem.task)))
    Mean(problem.task).add(loss, output, val_part.batch)
    _try_smallest(point, "val_batches", smallest_val_batch(problem))
    network.train()
    _try_smallest(point, "train_batches", smallest_micro_batch(problem, smallest_train_batch(problem)))
    return point, val_part


def _first_val_batch(problem: Problem) -> Batch:
    """After the first batches were asked for again."""
    with user_code("task.val_batches", "val_batches(outer_step=0)"):
        batch = next(iter(problem.batches_of("val_batches", 0)), None)
    if batch is None:
        raise UserError(Fault("task.val_batches", "val_batches(outer_step=0) gave no batch", "at least one"))
    check_finite(batch, "task.val_batches", "batch 0 of val_batches(outer_step=0)", problem.dtype)
    with user_code("task.train_batches", "asked again, train_batches(outer_step=0, epoch=0) or val_batches"):
        check_repeatable(problem)
    return batch


def _try_smallest(point: TrialPoint, source: str, found: tuple[str, Batch] | None) -> None:
    """The network on the task's smallest batch: batch-norm on batch statistics takes no single sample."""
    if found is None:
        return
    network, (where, batch) = point.loss.network, found
    part = network.cast(Part(batch))
    try:
        network(point.weights.detach(), point.buffers, part.inputs)
    except Exception as error:  # whatever the user's network raises
        message = next(iter(str(error).strip().splitlines()), "")
        samples = counted(samples_in(batch), "sample")
        problem = f"the network raised {type(error).__name__} on {where}, of {samples}: {message}"
        expected = "batches that the network takes, such as no last batch of one sample"
        expected += " (a smaller inner.accumulate leaves more samples to each micro-batch)" if "micro-" in where else ""
        raise UserError(Fault(f"task.{source}", problem, expected)) from error


def _few_samples(point: TrialPoint) -> TrialPoint:
    """The point on the first samples of its batch, where network and loss take fewer; else as it is."""
    if (common_rows(point.part.batch) or 0) <= FEW:
        return point
    few = replace(point, part=Part(first_samples(point.part.batch, FEW)))
    try:
        with torch.no_grad():
            few.loss(few.weights, few.theta, few.buffers, few.part)
    except Exception:  # it wants batches of one size
        return point
    return few


def _count_batches(problem: Problem) -> None:
    """Finds an epoch that is too short before training comes to its end, where the task's batches can be counted."""
    batches, expected = problem.task.train_batches(0, 0), problem.task.steps_per_epoch
    if isinstance(batches, Sized) and len(batches) < expected:
        given = f"train_batches(outer_step=0, epoch=0) has {len(batches)} batches"
        raise UserError(Fault("task.train_batches", given, f"at least steps_per_epoch = {expected}"))


def _try_loss(
    name: str, point: TrialPoint, part: Part, loss_of: Callable[[Any, Batch], object]
) -> tuple[Tensor, object]:
    """Loss and output on one batch; the loss must be one number that can be differentiated by the weights."""
    inputs, targets = part.inputs, targets_of(part.batch)
    with user_code("model", "the network", f" on inputs {described(inputs)}{_whole_inputs_hint(inputs)}"):
        weights = point.weights.detach().requires_grad_()
        output, _ = point.loss.network(weights, point.buffers, inputs)
    given = f" on output {described(output)} and target {described(targets)}"
    with user_code(f"task.{name}", f"{name}(output, target)", given + _column_hint(targets)):
        loss = loss_of(output, part.batch)
    expected = "a differentiable scalar tensor, the mean over the batch"
    if not isinstance(loss, Tensor) or loss.shape != ():
        problem = f"{name}(output, target) returned {described(loss)}{given}"
        raise UserError(Fault(f"task.{name}", problem, expected))
    if not loss.requires_grad:
        problem = f"{name}(output, target) returned a number cut off from the weights (by detach, item or argmax?)"
        raise UserError(Fault(f"task.{name}", problem, expected))
    _refuse_own_parameters(name, weights, output, loss_of, part.batch)
    return loss, output


def _refuse_own_parameters(
    name: str, weights: Tensor, output: Any, loss_of: Callable[[Any, Batch], object], batch: Batch
) -> None:
    """Refuses a loss that has a gradient by something else than the network's output.

    A run has a copy of the network: what a loss reads of the user's own module, such as a penalty on its parameters,
    would never move.
    """
    leaves = [
        leaf.detach().requires_grad_(leaf.requires_grad) for leaf in tree_leaves(output) if _may_have_gradient(leaf)
    ]
    known = {id(leaf) for leaf in (weights, *leaves)}  # an object that cannot be taken apart keeps its graph
    remaining = iter(leaves)
    loss = loss_of(tree_map(lambda leaf: next(remaining) if _may_have_gradient(leaf) else leaf, output), batch)
    for node in ancestors(loss) if isinstance(loss, Tensor) else ():
        parameter = getattr(node, "variable", None)
        if isinstance(parameter, Tensor) and id(parameter) not in known:
            problem = f"{name}(output, target) depends on a parameter {list(parameter.shape)} beside the output"
            expected = "a loss of (output, target) alone (weight_decay is a penalty on the weights)"
            raise UserError(Fault(f"task.{name}", problem, expected))


def _may_have_gradient(leaf: object) -> bool:
    """Whether it is a tensor that may have a gradient."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _whole_inputs_hint(inputs: Any) -> str:
    """For a network that fails on one tensor of whole numbers."""
    whole = [not tensor.is_floating_point() for tensor in tensors_in(inputs)]
    return "; images are expected as floats, such as images / 255" if whole == [True] else ""


def _column_hint(targets: Any) -> str:
    """For a loss that fails on class indices which form a column."""
    shapes = [list(tensor.shape) for tensor in tensors_in(targets)]
    is_column = len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] == 1
    return f"; class indices are expected as [{shapes[0][0]}], such as target.squeeze(1)" if is_column else ""
