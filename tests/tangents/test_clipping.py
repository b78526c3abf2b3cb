"""Gradient clipping against `torch.nn.utils`, and its derivative against differences and a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from fds_dist.tangents.clipping import EPSILON, clipping

BOUNDS = [(None, 0.5), (None, 50.0), (0.1, None), (0.1, 0.5), (0.1, 50.0), (None, None)]
"""(of each element, of the norm): gradients here have a norm of about 4."""


def gradient() -> Tensor:
    return torch.randn(17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def direction(rows: int = 1) -> Tensor:
    return torch.randn(rows, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("value", "norm"), BOUNDS)
def test_it_is_what_torch_does_over_all_parameters(value: float | None, norm: float | None) -> None:
    parameters = [nn.Parameter(part.clone()) for part in gradient().split([3, 10, 4])]
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    if value is not None:
        nn.utils.clip_grad_value_(parameters, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)
    theirs = torch.cat([parameter.grad for parameter in parameters])  # type: ignore[misc]
    # They take the norm of the norms of parameters: the rounding of a few float64 sums.
    torch.testing.assert_close(clipping(value, norm)(gradient()), theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("value", "norm"), BOUNDS)
def test_its_derivative_is_that_of_differences(value: float | None, norm: float | None) -> None:
    clip, g, dg, h = clipping(value, norm), gradient(), direction()[0], 1e-6
    difference = (clip(g + h * dg) - clip(g - h * dg)) / (2 * h)
    # Rounding 1e-16/h and truncation h²; no element lies within h of its bound.
    torch.testing.assert_close(jvp(clip, (g,), (dg,))[1], difference, rtol=1e-8, atol=1e-9)


def test_its_derivative_is_the_closed_form_forward_and_reverse_one_and_many() -> None:
    clip, g, rows = clipping(norm=0.5), gradient(), direction(3)
    length = g.norm()
    factor = 0.5 / (length + EPSILON)
    expected = factor * rows - factor * (rows @ g)[:, None] * g / (length * (length + EPSILON))
    pushed = vmap(lambda dg: jvp(clip, (g,), (dg,))[1])(rows)
    pulled = vmap(vjp(clip, g)[1])(rows)[0]  # the Jacobian is symmetric
    for found in (pushed, pulled):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("norm", [0.5, 1e-9])
def test_at_zero_the_derivative_is_finite(norm: float) -> None:
    clip, zero, dg = clipping(norm=norm), torch.zeros(17, dtype=torch.float64), direction()[0]
    factor = min(1.0, norm / EPSILON)
    for found in (jvp(clip, (zero,), (dg,))[1], vjp(clip, zero)[1](dg)[0]):
        torch.testing.assert_close(found, factor * dg, rtol=1e-15, atol=0)


def test_the_norm_is_that_of_all_ranks_columns() -> None:
    g = gradient()
    rest = g[9:].square().sum()

    def total(part: Tensor) -> Tensor:
        return part + rest

    columns = clipping(norm=0.5, total=total)(g[:9])
    torch.testing.assert_close(columns, clipping(norm=0.5)(g)[:9], rtol=1e-14, atol=0)
