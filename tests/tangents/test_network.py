"""A network called with flat weights: the native module's numbers, and batch-norm's running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import CPU, ONE_RANK, conv_bn, flat, go_on, image_task, images, make_problem, mlp, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fds_dist.common.faults import UserError
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.run import run_horizon
from fds_dist.tangents import METHODS, Network, TrainingLoss

ROUNDING = 1e-12
"""Float64 rounding: sums in another order, and some ten steps that amplify it."""


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("method", list(METHODS))
def test_running_statistics_equal_native_training(momentum: float | None, method: str) -> None:
    def build() -> nn.Module:
        module = conv_bn()
        for layer in batch_norms(module):
            layer.momentum = momentum
        return module

    task = image_task(build)
    native = task.build_model(0).double().train()
    optimizer = torch.optim.SGD(native.parameters(), lr=0.1)
    for step in range(12):  # over two epochs of 5 steps
        inputs, targets = list(task.train_batches(0, step // 5))[step % 5]
        optimizer.zero_grad()
        F.cross_entropy(native(inputs), targets).backward()
        optimizer.step()

    buckets = {"lr": [0.1, 0.1]}
    problem = make_problem(task, buckets, method=method)
    network = problem.network(0)
    state, _ = run_horizon(problem, network, flat(buckets), 0, 12, (0, 1), go_on)

    assert relative_error(state.weights, nn.utils.parameters_to_vector(native.parameters())) < ROUNDING
    for ours, theirs in zip(batch_norms(network.module), batch_norms(native), strict=True):
        assert ours.num_batches_tracked == theirs.num_batches_tracked == 12
        assert relative_error(ours.running_mean, theirs.running_mean) < ROUNDING  # type: ignore[arg-type]
        assert relative_error(ours.running_var, theirs.running_var) < ROUNDING  # type: ignore[arg-type]


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("method", "checkpointed"), [("jvp", False), ("double_backward", False), ("double_backward", True)]
)
def test_products_leave_running_statistics_alone(method: str, checkpointed: bool) -> None:
    module = Checkpointed(conv_bn()) if checkpointed else conv_bn()
    network = Network(module, torch.float64, CPU)
    network.train()
    before = buffers(module)
    weights = network.initial_weights
    loss = TrainingLoss(network, F.cross_entropy)
    point = METHODS[method](loss, weights, weights.new_zeros(0), images(8), 0, False)
    point.products(torch.ones(3, len(weights), dtype=torch.float64), weights.new_zeros(3, 0))
    assert same(buffers(module), before)
    network.update_statistics(point.statistics)
    assert [layer.num_batches_tracked.item() for layer in batch_norms(module)] == [1, 1]  # type: ignore[union-attr]
    assert not same(buffers(module), before)


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_evaluation_equals_the_native_module(batch_norm: str) -> None:
    native = conv_bn().double()
    for layer in batch_norms(native):
        nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    network = Network(copy.deepcopy(native), torch.float64, CPU)
    native.eval()
    if batch_norm == "batch":
        for layer in batch_norms(native):
            layer.train()
    inputs = images(8)[0]
    before = buffers(network.module)
    network.evaluate(batch_norm)
    assert torch.equal(network(network.initial_weights, inputs)[0], native(inputs))
    assert same(buffers(network.module), before)


def test_dropout_is_off_in_evaluation_with_either_batch_norm() -> None:
    network = Network(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), torch.float64, CPU)
    inputs = torch.randn(8, 3, dtype=torch.float64)
    for batch_norm in ("running", "batch"):
        network.evaluate(batch_norm)
        output = network(network.initial_weights, inputs)[0]
        assert torch.equal(output, network(network.initial_weights, inputs)[0])
        assert (output != 0).all()


def test_estimate_leaves_the_tasks_tensors_as_they_were() -> None:
    task = image_task()
    before = [part.clone() for part in (*task.train, *task.val)]
    buckets = {"lr": [0.1], "momentum": [0.5]}
    estimate_forward(make_problem(task, buckets), flat(buckets), 0, 5, ONE_RANK, go_on)
    assert all(map(torch.equal, (*task.train, *task.val), before))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda output, target: F.cross_entropy(output, target, reduction="none"), r"shape \[8\]"),
        (lambda output, target: F.cross_entropy(output, target).item(), "float"),
    ],
)
def test_a_loss_that_is_no_scalar_tensor_is_the_users_error(loss: object, expected: str) -> None:
    network = Network(mlp(), torch.float64, CPU)
    weights = network.initial_weights
    with pytest.raises(UserError, match=expected):
        TrainingLoss(network, loss)(weights, weights.new_zeros(0), images(8))  # type: ignore[arg-type]


def test_batches_are_cast_in_their_floating_point_parts_alone() -> None:
    network = Network(mlp(), torch.float32, CPU)
    inputs, targets = network.cast(images(8))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
