"""Validation loss, gradient and accuracy against the plain module on all samples at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import TensorTask, conv_bn, image_task, make_problem, mlp, regression_task, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.common.faults import UserError
from fds_dist.inner.estimate import Evaluation, validate
from fds_dist.inner.problem import Problem
from fds_dist.inner.training import initial_state
from fds_dist.tangents import Network

ROUNDING = 1e-13
"""Float64: the same sums in another order."""


class UnevenTask(TensorTask):
    """Validation batches of 5, 8 and 3 samples."""

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split([5, 8, 3]) for part in self.val), strict=True)


def problem_of(task: TensorTask, **options: Any) -> Problem:
    return make_problem(task, {"lr": [0.1]}, **options)


def uneven(task: TensorTask) -> UnevenTask:
    return UnevenTask(task.build, task.train, task.val, task.loss, task.val_loss)


def native(problem: Problem, network: Network, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its gradient [D] and the output of the plain module, whatever its mode."""
    module = problem.build_model(0).double()
    module.load_state_dict(dict(network.module.named_buffers()), strict=False)
    for ours, theirs in zip(module.modules(), network.module.modules(), strict=True):
        ours.training = theirs.training
    output = module(inputs)
    loss = problem.task.loss(output, targets)
    return loss, nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(module.parameters()))), output


def gradient_of(evaluation: Evaluation) -> Tensor:
    assert evaluation.gradient is not None
    return evaluation.gradient


@pytest.mark.parametrize("task", [uneven(image_task(mlp)), uneven(regression_task())], ids=["classes", "regression"])
def test_samples_weigh_alike_whatever_their_batch(task: UnevenTask) -> None:
    problem = problem_of(task)
    network = problem.network(0)
    found = validate(problem, network, initial_state(problem, network), 0)
    loss, gradient, output = native(problem, network, *task.val)
    assert found.loss == pytest.approx(loss.item(), rel=ROUNDING)
    assert relative_error(gradient_of(found), gradient) < ROUNDING
    if task.val[1].is_floating_point():
        assert found.accuracy is None
    else:
        assert found.accuracy == (output.argmax(1) == task.val[1]).double().mean()


@pytest.mark.parametrize("val_batch_norm", ["batch", "running"])
def test_batch_norm_uses_the_statistics_that_were_asked_for(val_batch_norm: str) -> None:
    task = image_task(conv_bn)
    problem = problem_of(task, val_batch_norm=val_batch_norm)
    network = problem.network(0)
    values = {"running_mean": 1.0, "running_var": 4.0, "num_batches_tracked": 3}
    moved = {
        name: torch.full_like(buffer, values[name.rpartition(".")[2]])
        for name, buffer in network.initial_buffers.items()
    }
    before = {name: buffer.clone() for name, buffer in moved.items()}
    found = validate(problem, network, replace(initial_state(problem, network), buffers=moved), 0)
    assert all(torch.equal(moved[name], before[name]) for name in before)
    loss, gradient, _ = native(problem, network, *task.val)
    assert found.loss == pytest.approx(loss.item(), rel=ROUNDING)
    assert relative_error(gradient_of(found), gradient) < ROUNDING
    other = problem_of(task, val_batch_norm={"batch": "running", "running": "batch"}[val_batch_norm])
    reference = validate(other, network, replace(initial_state(other, network), buffers=moved), 0)
    assert abs(reference.loss - found.loss) > 0.01  # it does matter


def test_validation_loss_of_the_task_is_used_where_there_is_one() -> None:
    task = image_task(mlp)
    task.val_loss = lambda output, target: 3 * F.cross_entropy(output, target)
    problem, plain = problem_of(task), problem_of(image_task(mlp))
    network = problem.network(0)
    found, reference = (validate(each, network, initial_state(each, network), 0) for each in (problem, plain))
    assert found.loss == pytest.approx(3 * reference.loss, rel=ROUNDING)
    assert relative_error(gradient_of(found), 3 * gradient_of(reference)) < ROUNDING


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"val_batches\(outer_step=0\) gave no batch"),
        ([np.zeros((4, 1, 6, 6))], r"val_batches.* gave a ndarray; expected pairs"),
        ([(torch.zeros(4, 1, 6, 6), np.zeros(4))], r"val_batches.* gave a tuple of .*ndarray; expected pairs"),
    ],
)
def test_bad_validation_batches_are_the_users_error(
    batches: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = image_task(mlp)
    monkeypatch.setattr(task, "val_batches", lambda outer_step: iter(batches))
    problem = problem_of(task)
    network = problem.network(0)
    with pytest.raises(UserError, match=message):
        validate(problem, network, initial_state(problem, network), 0)
