"""Losses of gathered outputs on the data axis against one process. As a program, what each rank runs: `… FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks

SAMPLES = 11
"""Parts of 5 and 6 samples on two ranks; 2, 3, 3 and 3 on four."""

ROUNDING = 1e-12
"""float64: sums over parts round differently, 1e-16 each, over a few hundred terms of order 1."""

CLASS_WEIGHTS = torch.tensor([0.1, 2.0, 5.0, 1.0], dtype=torch.float64)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "class weights": lambda output, target: F.cross_entropy(output, target, CLASS_WEIGHTS),
    "ignored targets": lambda output, target: F.cross_entropy(output, target, ignore_index=2),
    "sum": lambda output, target: F.cross_entropy(output, target, reduction="sum"),
    "across samples": lambda output, target: (output @ output.T).square().mean() + output.std(0).log().sum(),
    "largest": lambda output, target: F.cross_entropy(output, target, reduction="none").max(),
}


class TotalBatchNorm(nn.Module):
    """Batch-norm with the statistics of the whole batch, so that parts see each other before the loss as well."""

    def __init__(self, axis: DataAxis) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        mean = self.axis.differentiable_sum(x.sum(0)) / SAMPLES
        variance = self.axis.differentiable_sum((x - mean).square().sum(0)) / SAMPLES
        return (x - mean) / (variance + 0.1).sqrt()


def problem(axis: DataAxis, normed: bool) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """Network, weights, three directions, inputs and targets of the whole batch; the same on all ranks."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (SAMPLES,), generator=generator)
    middle = [TotalBatchNorm(axis)] if normed else []
    network = nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, 4)).double()
    weights = {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in network.named_parameters()
    }
    directions = {
        name: torch.randn(3, *weight.shape, generator=generator, dtype=torch.float64)
        for name, weight in weights.items()
    }
    return network, weights, directions, inputs, targets


def derivatives(axis: DataAxis, normed: bool) -> dict[str, Tensor]:
    """Loss, gradient and Hessian-vector products of each loss, of the whole batch, whatever part this rank sees."""
    network, weights, directions, inputs, targets = problem(axis, normed)
    part = axis.split((inputs, targets))

    def flat_sum(tensors: Any) -> Tensor:
        return torch.cat([axis.sum(tensor.detach().flatten(-dims)) for tensor, dims in tensors], -1)

    result = {}
    for name, loss_of in LOSSES.items():

        def loss_at(weights: dict[str, Tensor], loss_of: Any = loss_of) -> Tensor:
            return loss_of(axis.gather_outputs(functional_call(network, weights, (part.inputs,))), part.targets)

        leaves = {key: weight.clone().requires_grad_() for key, weight in weights.items()}
        loss = loss_at(leaves)
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        result[f"{name}: loss"] = loss.detach()
        result[f"{name}: gradient"] = flat_sum(
            (g, leaf.dim()) for g, leaf in zip(gradients, leaves.values(), strict=True)
        )
        for number in range(3):
            along = [directions[key][number] for key in leaves]
            products = torch.autograd.grad(gradients, list(leaves.values()), along, retain_graph=True)
            result[f"{name}: product {number}"] = flat_sum((p, p.dim()) for p in products)

        def tangents(direction: dict[str, Tensor], loss_at: Any = loss_at) -> dict[str, Tensor]:
            return jvp(grad(loss_at), (weights,), (direction,))[1]

        for number in range(3):
            forward = tangents({key: rows[number] for key, rows in directions.items()})
            result[f"{name}: product {number} by jvp"] = flat_sum((p, p.dim()) for p in forward.values())
        batched = vmap(tangents)(directions)
        result[f"{name}: products by vmap"] = flat_sum((p, p.dim() - 1) for p in batched.values())
    return result


def run_all(folder: Path) -> None:
    environment = read_environment()
    with Ranks(environment, MeshShape(1, 1, environment.world_size), CPU) as ranks:
        axis = ranks.data
        results = {normed: derivatives(axis, normed) for normed in (False, True)}
        rows = axis.rank  # the first rank has none
        own = torch.full((rows, 2), float(axis.rank))
        gathered = [
            axis.gather_outputs(part) for part in (own, own.bool(), own.to(torch.bfloat16), own.to(torch.cfloat))
        ]
        known = axis.gather_outputs(own, range(axis.size))
        torch.save((results, gathered, known, axis.part_sizes(SAMPLES)), folder / f"{environment.rank}.pt")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])  # 2: parts differ in size, too
def test_a_loss_of_gathered_outputs_is_that_of_the_whole_batch(size: int, tmp_path: Path) -> None:
    ended = start_ranks([__file__, str(tmp_path)], size, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * size
    alone = {normed: derivatives(DataAxis(), normed) for normed in (False, True)}
    expected_rows = torch.cat([torch.full((rank, 2), float(rank)) for rank in range(size)])
    for rank in range(size):
        results, gathered, known, sizes = torch.load(tmp_path / f"{rank}.pt")
        assert sizes == {2: [5, 6], 4: [2, 3, 3, 3]}[size]
        for normed, expected in alone.items():
            for name, value in expected.items():
                if name.endswith("loss"):
                    first = torch.load(tmp_path / "0.pt")[0][normed][name]
                    assert torch.equal(results[normed][name], first)  # each rank computes the very same
                torch.testing.assert_close(
                    results[normed][name],
                    value,
                    rtol=ROUNDING,
                    atol=ROUNDING,
                    msg=lambda text, name=name: f"{name}: {text}",
                )
        for part in gathered:
            assert torch.equal(part, expected_rows.to(part.dtype))
        assert torch.equal(known, expected_rows)


def test_products_of_one_process_agree_with_each_other() -> None:
    results = derivatives(DataAxis(), normed=True)
    for name in LOSSES:
        for number in range(3):
            product = results[f"{name}: product {number}"]
            assert product.abs().max() > 1e-3
            torch.testing.assert_close(
                results[f"{name}: product {number} by jvp"], product, rtol=ROUNDING, atol=ROUNDING
            )
            torch.testing.assert_close(
                results[f"{name}: products by vmap"][number], product, rtol=ROUNDING, atol=ROUNDING
            )


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
