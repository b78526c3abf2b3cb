"""User code that casts to a lower precision is found, and computes in float64 all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fds_dist.inner.single_precision import InFloat64, float64_inside

X = torch.linspace(0.1, 1.3, 12, dtype=torch.float64).reshape(3, 4)
TARGETS = torch.tensor([0, 1, 2])
CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float(),
    "bfloat16": lambda x: x.bfloat16(),
    "to": lambda x: x.to(torch.float32),
    "to another tensor": lambda x: x.to(torch.ones(1)),
    "type_as": lambda x: x.type_as(torch.ones(1)),
    "softmax": lambda x: x.softmax(-1, dtype=torch.float32),
    "class weights": lambda x: F.cross_entropy(x, TARGETS, weight=torch.ones(4)),
    "linear": lambda x: F.linear(x, torch.ones(2, 4)),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_are_found_and_raised(name: str) -> None:
    with float64_inside(lambda: CASTS[name](X)) as (where, exact):
        assert "float" in where
        assert exact
        assert CASTS[name](X).dtype == torch.float64


def test_float64_alone_is_left_as_it_is() -> None:
    with float64_inside(lambda: X.tanh()) as inside:
        assert inside == ("", True)
        assert X.float().dtype == torch.float32


def test_what_has_no_float64_in_it_is_left_alone() -> None:
    with InFloat64():
        assert torch.ones(3).float().dtype == torch.float32
        assert TARGETS.float().dtype == torch.float32


def test_what_is_written_in_place_is_written() -> None:
    target, sums = torch.zeros(3, 4), torch.zeros(3, 4)
    with InFloat64():
        target.copy_(X)
        sums += X
        target[0] = X[1]
    assert torch.equal(target[1:], X.float()[1:])
    assert torch.equal(target[0], X.float()[1])
    assert torch.equal(sums, X.float())


def test_second_derivatives_pass_through_casts() -> None:
    def loss(x: Tensor) -> Tensor:
        return (x.float() ** 3).sum()

    with InFloat64():
        product = torch.func.jvp(torch.func.grad(loss), (X,), (torch.ones_like(X),))[1]
    torch.testing.assert_close(product, 6 * X, rtol=1e-15, atol=0.0)  # float32 would be off by 1e-7
