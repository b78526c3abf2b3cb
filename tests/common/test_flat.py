"""Flat weights: nothing is lost between parameters and vector, and derivatives pass through the views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from fds_dist.common.flat import FlatLayout, trainable_parameters


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double()


def layout_and_vector(model: nn.Module) -> tuple[FlatLayout, Tensor]:
    parameters = trainable_parameters(model)
    layout = FlatLayout.of(parameters)
    return layout, layout.flatten(parameters, torch.float64, "cpu")


def test_views_give_back_every_parameter_and_lie_in_the_vector_without_gaps() -> None:
    model = network()
    layout, vector = layout_and_vector(model)
    views = layout.views(vector)
    assert list(views) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert torch.equal(views[name], parameter)
    assert layout.size == len(vector) == sum(parameter.numel() for parameter in model.parameters())
    for name, offset, size in zip(layout.names, layout.offsets, layout.sizes, strict=True):
        assert views[name].data_ptr() == vector[offset:].data_ptr()  # a view, not a copy
        assert torch.equal(vector[offset : offset + size], views[name].reshape(-1))


@pytest.mark.parametrize("shapes", [[()], [(0,), (2, 0), (3,)], [(2, 3), (), (1, 1)], [(4,)]])
def test_any_shapes_round_trip(shapes: list[tuple[int, ...]]) -> None:
    tensors = {f"t{index}": torch.randn(shape) for index, shape in enumerate(shapes)}
    layout = FlatLayout.of(tensors)
    views = layout.views(layout.flatten(tensors, torch.float32, "cpu"))
    assert all(torch.equal(views[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("source", [torch.float64, torch.float32])
def test_the_vector_is_a_detached_copy_of_the_asked_type(source: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=source))
    vector = FlatLayout.of({"w": parameter}).flatten({"w": parameter}, torch.float64, "cpu")
    vector += 1
    assert vector.dtype == torch.float64
    assert not vector.requires_grad
    assert torch.equal(parameter, torch.ones(3, dtype=source))


def test_a_vector_of_another_length_is_refused() -> None:
    layout = FlatLayout.of({"w": torch.ones(3)})
    with pytest.raises(RuntimeError, match="split"):
        layout.views(torch.ones(4))


def test_derivatives_by_the_vector_are_those_by_the_parameters() -> None:
    model, x = network(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    layout, vector = layout_and_vector(model)

    def loss(weights: Tensor) -> Tensor:
        return functional_call(model, layout.views(weights), (x,)).square().sum()

    direct = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    leaf = vector.clone().requires_grad_()
    (flat,) = torch.autograd.grad(loss(leaf), leaf)
    # The same operations on the same values; only sums of several contributions may be ordered otherwise.
    torch.testing.assert_close(flat, torch.cat([part.reshape(-1) for part in direct]), rtol=1e-14, atol=1e-13)

    model.eval()  # batch-norm that counts batches cannot be vectorized
    leaf = vector.clone().requires_grad_()
    (flat,) = torch.autograd.grad(loss(leaf), leaf)
    directions = torch.randn(3, len(vector), dtype=torch.float64)
    forward = vmap(lambda direction: jvp(loss, (vector,), (direction,))[1])(directions)
    # Forward and reverse mode add some hundred products in another order: a few hundred roundings at most.
    torch.testing.assert_close(forward, directions @ flat, rtol=1e-12, atol=1e-12)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)


def test_frozen_parameters_are_left_out_and_shared_ones_counted_once() -> None:
    assert list(trainable_parameters(Tied())) == ["first.weight", "second.bias"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "ReLU has no parameter that requires a gradient"),
        (nn.Linear(1, 1).requires_grad_(False), "Linear has no parameter that requires a gradient"),
        (nn.Linear(1, 1, dtype=torch.complex64), "not floating point cannot be trained: weight, bias"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainable_parameters(module)
