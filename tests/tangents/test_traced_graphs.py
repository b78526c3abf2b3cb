"""Graphs for any number of tangents, and graphs without the products of zeros, beside the functions they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from fds_dist.tangents.compiled.any_number import NotAlike, generalized, with_opaque_convolutions
from fds_dist.tangents.compiled.zeros import drop_zeros

ROWS = (1, 2, 3, 4, 7)
aten = torch.ops.aten


def graph_of(function: Callable[..., Any], *examples: Tensor) -> GraphModule:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return make_fx(function)(*map(mode.from_tensor, examples))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


IMAGES = random(5, 1, 6, 6)


def convolved(weight: Tensor, rows: Tensor) -> Tensor:
    """Tangents of a convolution's gradient by its weight [2, 1, 3, 3], along `rows` [C, 2, 1, 3, 3]."""

    def gradient(weight: Tensor) -> Tensor:
        return grad(lambda w: F.conv2d(IMAGES, w).tanh().square().sum())(weight)

    return vmap(lambda row: jvp(gradient, (weight,), (row,))[1])(rows)


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "products and sums": (lambda w, rows: (vmap(lambda row: (w @ row).sin())(rows), rows.sum(0)), (3, 3)),
    "rows beside each other": (lambda w, rows: (rows[:, None] * w).reshape(-1, 3) + 1, (3, 3)),
    "zeros like rows": (lambda w, rows: rows.new_zeros(2 * len(rows), 3) + w.sum(), (3, 3)),
    "convolutions": (convolved, (2, 1, 3, 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_traces_make_a_graph_for_any_number_of_rows(name: str) -> None:
    function, shape = FUNCTIONS[name]
    few, many = (graph_of(function, random(*shape), random(count, *shape)) for count in (2, 3))
    graph, rows = generalized(few, many)
    assert rows == (1,)
    opaque = with_opaque_convolutions(graph)
    assert not {aten.convolution.default, aten.convolution_backward.default} & {n.target for n in opaque.graph.nodes}
    for count in ROWS:
        arguments = random(*shape), random(count, *shape)
        expected = function(*arguments)
        torch.testing.assert_close(graph(*arguments), expected)
        torch.testing.assert_close(opaque(*arguments), expected)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda rows: torch.stack([row.sin() for row in rows]), "the operators depend on"),
        (lambda rows: rows[: len(rows) - 1] * 2, "1 and 2 are no multiples of"),
        (lambda rows: rows * torch.arange(float(len(rows)))[:, None], "are no multiples of|the operators depend on"),
        (lambda rows: rows / len(rows), None),
    ],
)
def test_what_is_no_graph_of_any_number_is_refused(function: Callable[..., Any], reason: str | None) -> None:
    few, many = (graph_of(function, random(count, 4)) for count in (2, 3))
    if reason is None:  # a number that happens to be a multiple is taken for one, and is right here
        graph, _ = generalized(few, many)
        assert torch.equal(graph(random(5, 4)), function(random(5, 4)))
        return
    with pytest.raises(NotAlike, match=reason):
        generalized(few, many)


def test_without_rows_there_is_nothing_to_count() -> None:
    graphs = [graph_of(torch.sin, random(4)) for _ in range(2)]
    with pytest.raises(NotAlike, match="no argument has a row"):
        generalized(*graphs)


def linear(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight).tanh().square().sum()


def convolution(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x.view(-1, 1, 4, 3), weight.view(3, 1, 2, 2)).tanh().square().sum()


def tangent(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Value and tangent of a gradient along a direction of the weight; x has none."""

    def function(weight: Tensor, direction: Tensor, x: Tensor) -> Any:
        return jvp(lambda w, x: grad(loss)(w, x), (weight, x), (direction, torch.zeros_like(x)))

    return function


@pytest.mark.parametrize(
    ("loss", "weight", "products"),
    [
        # Forward and back to the weight, each with its tangent.
        (linear, (5, 12), {aten.mm.default: 4}),
        (convolution, (3, 4), {aten.convolution.default: 2, aten.convolution_backward.default: 2}),
    ],
)
def test_products_of_zeros_are_dropped(loss: Any, weight: tuple[int, ...], products: dict[Any, int]) -> None:
    examples = random(*weight), random(*weight) + 1, random(8, 12)
    graph, function = graph_of(tangent(loss), *examples), tangent(loss)
    before = Counter(node.target for node in graph.graph.nodes)
    assert all(before[operator] > count for operator, count in products.items())
    drop_zeros(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    after = Counter(node.target for node in graph.graph.nodes)
    assert {operator: after[operator] for operator in products} == products
    torch.testing.assert_close(graph(*examples), function(*examples))


def with_bias(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight[:, :12], weight[:, 12]).tanh().square().sum()


def test_zeros_that_are_spread_over_tangents_are_not_multiplied() -> None:
    """The first layer's tangent is that of its bias, one row per tangent, and the batch's, zero, which has one row."""
    examples = random(5, 13), random(3, 5, 13) + 1, random(8, 12)
    function = vmap(tangent(with_bias), in_dims=(None, 0, None))
    graph = graph_of(function, *examples)
    drop_zeros(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    # Back to the weight; forward it is one with the bias, and those of the tangents are batches.
    assert [node.target for node in graph.graph.nodes].count(aten.mm.default) == 1
    torch.testing.assert_close(graph(*examples), function(*examples))


def written(x: Tensor) -> Tensor:
    zeros = torch.zeros_like(x)
    zeros.t().add_(x.t())
    return x + zeros


def written_in_part(x: Tensor) -> Tensor:
    zeros = torch.zeros_like(x)
    zeros[:, :2] = x[:, :2]
    return x + zeros


def written_in_pieces(x: Tensor) -> Tensor:
    zeros = torch.zeros_like(x)
    zeros.split([1, 2])[1].add_(1)
    return x + zeros


@pytest.mark.parametrize(
    "function",
    [
        *(written, written_in_part, written_in_pieces),
        lambda x: x.sum(0) + torch.zeros_like(x),  # a sum of another shape
        lambda x: x.float() + torch.zeros_like(x),  # of another type
        lambda x: F.conv2d(torch.zeros(1, 1, 3, 3, dtype=x.dtype), x[None, None], x[0, :1]) + x[:1, :1],
    ],
)
def test_what_is_not_zero_stays(function: Callable[[Tensor], Tensor]) -> None:
    graph = graph_of(function, random(3, 3))
    drop_zeros(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert torch.equal(graph(random(3, 3)), function(random(3, 3)))
