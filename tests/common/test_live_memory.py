"""The memory of a computation: only what is held at the same time counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp, vmap

from fds_dist.common.memory import peak_bytes

CPU = torch.device("cpu")
COUNT, SIZE = 1000, 8000
"""Elements of a vector, and its bytes in float64."""
X = torch.ones(COUNT, dtype=torch.float64)


def test_what_is_let_go_does_not_count() -> None:
    def one_after_the_other() -> None:
        for _turn in range(5):
            X.sin()

    def all_together() -> list[Tensor]:
        return [X + 1 for _ in range(5)]

    assert peak_bytes(one_after_the_other, CPU) == SIZE
    assert peak_bytes(all_together, CPU) == 5 * SIZE


def test_views_and_what_was_there_before_cost_nothing() -> None:
    assert peak_bytes(lambda: (X[:10], X.view(10, 100), X.add_(0)), CPU) == 0


def test_a_graph_holds_what_its_backward_pass_needs() -> None:
    def depth(steps: int) -> int:
        def run() -> None:
            y = X.clone().requires_grad_()
            for _ in range(steps):
                y = y.sin()
            y.sum()

        return peak_bytes(run, CPU)

    assert depth(20) - depth(10) == 10 * SIZE  # the input of each sine


def test_batched_tangents_are_seen() -> None:
    def run() -> None:
        vmap(lambda tangent: jvp(torch.sin, (X,), (tangent,))[1])(torch.ones(7, COUNT, dtype=torch.float64))

    assert peak_bytes(run, CPU) >= 2 * 7 * SIZE  # the tangents that go in and those that come out
