"""A network called with flat weights: the native module's numbers, and batch-norm's running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import CPU, conv_bn, flat, image_task, images, make_problem, mlp, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fds_dist.common.batch import Part
from fds_dist.common.faults import UserError
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun
from fds_dist.tangents import EXACT_METHODS, METHODS, Network, PointInputs, TrainingLoss

ROUNDING = 1e-12
"""Float64 rounding: sums in another order, and some ten steps that amplify it."""


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("method", list(EXACT_METHODS))
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
    training, _ = run_horizon(InnerRun(problem, flat(buckets), 0, 12), (0, 1))

    assert relative_error(training.state.weights, nn.utils.parameters_to_vector(native.parameters())) < ROUNDING
    assert len(training.state.buffers) == 6
    for name, buffer in native.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert training.state.buffers[name] == buffer == 12
        else:
            assert relative_error(training.state.buffers[name], buffer) < ROUNDING


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
    given = network.initial_buffers
    before = {name: buffer.clone() for name, buffer in given.items()}
    weights = network.initial_weights
    loss = TrainingLoss(network, F.cross_entropy)
    point = METHODS[method](PointInputs(loss, weights, weights.new_zeros(0), given, Part(images(8))))
    after = {name: buffer.clone() for name, buffer in point.buffers.items()}
    point.products(torch.ones(3, len(weights), dtype=torch.float64), weights.new_zeros(3, 0), {})
    assert all(torch.equal(given[name], before[name]) for name in before)
    assert all(torch.equal(point.buffers[name], after[name]) for name in after)  # three products, one update
    assert [buffer.item() for name, buffer in after.items() if name.endswith("tracked")] == [1, 1]


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
    assert torch.equal(network(network.initial_weights, network.initial_buffers, inputs)[0], native(inputs))
    assert same(buffers(network.module), before)


def test_dropout_is_off_in_evaluation_with_either_batch_norm() -> None:
    network = Network(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), torch.float64, CPU)
    inputs = torch.randn(8, 3, dtype=torch.float64)
    for batch_norm in ("running", "batch"):
        network.evaluate(batch_norm)
        output = network(network.initial_weights, network.initial_buffers, inputs)[0]
        assert torch.equal(output, network(network.initial_weights, network.initial_buffers, inputs)[0])
        assert (output != 0).all()


def test_estimate_leaves_the_tasks_tensors_as_they_were() -> None:
    task = image_task()
    before = [part.clone() for part in (*task.train, *task.val)]
    buckets = {"lr": [0.1], "momentum": [0.5]}
    estimate_forward(InnerRun(make_problem(task, buckets), flat(buckets), 0, 5))
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
        TrainingLoss(network, loss)(weights, weights.new_zeros(0), {}, Part(images(8)))  # type: ignore[arg-type]


def test_batches_are_cast_in_their_floating_point_parts_alone() -> None:
    network = Network(mlp(), torch.float32, CPU)
    part = network.cast(Part(images(8)))
    assert (part.inputs.dtype, part.targets.dtype) == (torch.float32, torch.int64)
