"""Batch-norm's own second derivative: PyTorch's values and first derivatives to the bit, differences for the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from problems import relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.common.batch import WHOLE, Share
from fds_dist.tangents import Network
from fds_dist.tangents.batch_norm import BatchNorm

SHAPES = [(12, 3), (4, 3, 5), (4, 3, 2, 3), (2, 3, 2, 2, 2)]
EPS, MOMENTUM = 1e-5, 0.1
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return BatchNorm.apply(x, weight, bias, (None, None), MOMENTUM, EPS)  # type: ignore[return-value]


def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, momentum=MOMENTUM, eps=EPS)


def arguments(shape: tuple[int, ...], mean: float = 0.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(3)
    tensors = (2 * torch.randn(shape, generator=drawn) + mean, *torch.randn(2, shape[1], generator=drawn))
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def derivatives(function: Function, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """y and the first derivatives of a loss of it; the second ones along directions of all of these."""
    drawn = torch.Generator().manual_seed(5)
    y = function(*tensors)
    loss = (y.sin() * torch.randn(y.shape, generator=drawn).to(y)).sum()
    first = torch.autograd.grad(loss, tensors, create_graph=True)
    along = [torch.randn(each.shape, generator=drawn).to(each) for each in first]
    return [y, *first], list(torch.autograd.grad(first, tensors, along))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_first_derivatives_have_pytorchs_bits(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x, weight, bias = arguments(shape, dtype=torch.float32)
    if len(shape) == 4:
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
    of_both = [derivatives(function, [x, weight, bias])[0] for function in (ours, native)]
    assert all(torch.equal(left, right) for left, right in zip(*of_both, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_second_derivatives_agree_with_differences(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(ours, arguments(shape))
    assert torch.autograd.gradgradcheck(ours, arguments(shape))


@pytest.mark.parametrize("mean", [0.0, 10.0, 300.0])
def test_rounding_is_no_larger_than_pytorchs(mean: float) -> None:
    shape = (16, 4, 8, 8)
    singles = arguments(shape, mean, torch.float32)
    exact = derivatives(native, [tensor.detach().double().requires_grad_() for tensor in singles])[1]

    def errors(function: Function) -> list[float]:
        return [relative_error(got, want) for got, want in zip(derivatives(function, singles)[1], exact, strict=True)]

    # Twice: rounding is a draw of luck, of few numbers for the weight's derivative.
    assert max(errors(ours)) < 2 * max(errors(native))


def test_a_third_derivative_is_refused() -> None:
    tensors = arguments((6, 3))
    (first,) = torch.autograd.grad(ours(*tensors).sin().sum(), tensors[:1], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_layers_take_it_where_they_are_differentiated_twice(affine: bool, tracked: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=affine, track_running_stats=tracked))
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def run(twice: bool) -> tuple[str, list[Tensor]]:
        network = Network(copy.deepcopy(module), torch.float32, torch.device("cpu"), twice=twice)
        network.train()
        weights = network.initial_weights.requires_grad_()
        output, after = network(weights, network.initial_buffers, inputs)
        (gradient,) = torch.autograd.grad(output.square().sum(), weights)
        return type(output.grad_fn).__name__, [output, gradient, *after.values()]

    (plain_node, plain), (node, results) = run(twice=False), run(twice=True)
    assert plain_node == "NativeBatchNormBackward0" and node == "BatchNormBackward"
    assert len(plain) == (5 if tracked else 2)
    assert all(torch.equal(left, right) for left, right in zip(plain, results, strict=True))


def test_running_statistics_have_the_bits_of_plain_pytorch() -> None:
    module = nn.BatchNorm2d(3)
    network = Network(copy.deepcopy(module), torch.float32, torch.device("cpu"))
    network.train()
    buffers = network.initial_buffers
    for step in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        module(x)
        _, buffers = network(network.initial_weights, buffers, x)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())


def test_networks_may_share_a_layer_and_a_layer_may_have_a_forward_of_a_users_own() -> None:
    """A layer that does more than its class keeps doing it: here it sees a part of a batch for another network."""
    layer = nn.BatchNorm1d(3)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    networks = [Network(nn.Sequential(layer), torch.float32, torch.device("cpu")) for _ in range(2)]
    networks[0].train()
    other_mean = torch.tensor([[1.0], [0.0], [0.0]])  # of mean, variance and fraction: the other part lies elsewhere
    share = Share(0.5, each=lambda part: torch.stack((part, part + other_mean)))
    second, first = (
        network(network.initial_weights, network.initial_buffers, x, part)[0]
        for network, part in ((networks[1], WHOLE), (networks[0], share))
    )
    assert not torch.allclose(first, second)
    assert torch.equal(second, nn.BatchNorm1d(3)(x))

    own = nn.BatchNorm1d(3)
    plain = own.forward
    own.forward = lambda x: plain(x) + 1  # type: ignore[method-assign]
    network = Network(own, torch.float32, torch.device("cpu"))
    network.train()
    assert torch.equal(network(network.initial_weights, network.initial_buffers, x)[0], second + 1)
