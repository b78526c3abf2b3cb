"""What crosses the `data` axis: how often, and sums that are added in rank order. As a program, what each rank runs:
`… FOLDER`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, conv_bn, flat, generator, image_task, make_problem, relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fds_dist.common.batch import WHOLE, Share
from fds_dist.distributed import data_axis
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents.running_statistics import _whole_moments

RANKS = 3
"""Of two, a sum has one order only."""
BUCKETS = {"lr": [0.1, 0.2], "momentum": [0.5]}
LIVE = {"lr": [0.1], "momentum": [0.5]}
"""Tangents that live from the first step on."""
ROUNDING = 1e-12
"""Sums over parts of a batch round differently: 1e-16 each, through 4 steps whose errors grow a little each."""
WIDTH = 11
"""No multiple of the ranks."""
PASSES = {"double_backward": (2, 2), "jvp": (4, 4)}
"""Passes through a network in a step without tangents, and in one more product. Forward and backward are one each, of
values and of tangents; jvp takes the gradient from a product, which it makes of a zero tangent where there is none."""


def summands(rank: int) -> Tensor:
    """[2, WIDTH], of sizes so different that the order of a sum shows in float32."""
    random = generator("summands", rank)
    return torch.randn(2, WIDTH, generator=random) * 10.0 ** torch.randint(-4, 5, (2, WIDTH), generator=random)


def normed(layers: int, method: str = "double_backward") -> Problem:
    """A network with so many batch-norms."""
    middle = [layer for _ in range(layers) for layer in (nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 6))]
    task = image_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 6), *middle, nn.Linear(6, 4)))
    return make_problem(task, LIVE, method=method)


class Collectives(TorchDispatchMode):
    """Counts what crosses the network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith("fds_dist")
        return func(*args, **(kwargs or {}))


def per_layer(ranks: Ranks, method: str, tangents: int) -> float:
    """Collectives of a batch-norm in a step with so many tangents."""
    counts = Counter()
    for layers in (1, 2):
        with Collectives() as seen:

            def note(state: InnerState, loss: Tensor, layers: int = layers, seen: Collectives = seen) -> bool:
                counts[layers, state.step] = seen.count
                return True

            run_horizon(InnerRun(normed(layers, method), flat(LIVE), 0, 2, ranks, on_step=note), range(tangents))
    return counts[2, 2] - counts[2, 1] - counts[1, 2] + counts[1, 1]


def per_layer_reverse(ranks: Ranks) -> float:
    """Collectives of a batch-norm in a step of a reverse sweep that keeps every state."""
    counts = Counter()
    for layers in (1, 2):
        for steps in (2, 4):
            with Collectives() as seen:
                estimate_reverse(InnerRun(normed(layers), flat(LIVE), 0, steps, ranks))
            counts[layers, steps] = seen.count
    return (counts[2, 4] - counts[2, 2] - counts[1, 4] + counts[1, 2]) / 2


def sums(axis: DataAxis) -> dict[str, Any]:
    """What this rank gets of sums over the axis."""
    part = summands(axis.rank)
    return {
        "sum": axis.sum(part).tolist(),
        "columns": axis.reduce(part).tolist(),
        "number": axis.sum(part[0, 0]).item(),
        "stack": axis.sum_of_own(torch.stack([part + place for place in range(axis.size)])).tolist(),
    }


def moments(axis: DataAxis) -> list[list[float]]:
    """Mean and variance of channels with a mean of 10⁶ and a variance of about 1."""
    x = far_from_zero()
    rows = x.split(axis.part_sizes(len(x)))[axis.rank]
    mean, variance, _ = _whole_moments(rows, Share(len(rows) / len(x), each=axis.gather_parts))
    return [mean.tolist(), variance.tolist()]


def far_from_zero() -> Tensor:
    return 1e6 + torch.randn(10, 4, 3, generator=generator("far"), dtype=torch.float64)


def hypergradients(ranks: Ranks) -> dict[str, list[float]]:
    """Of a network with batch-norm, by each way of derivatives."""
    problems = {method: make_problem(image_task(conv_bn), BUCKETS, method=method) for method in PASSES}
    runs = {method: InnerRun(problem, flat(BUCKETS), 0, 4, ranks) for method, problem in problems.items()}
    by_method = {method: estimate_forward(run).hypergradients for method, run in runs.items()}
    return by_method | {"reverse": estimate_reverse(runs["jvp"]).hypergradients}


def run_all(folder: Path) -> None:
    environment = read_environment()
    with Ranks(environment, MeshShape(1, 1, RANKS), CPU) as ranks:
        told: dict[str, Any] = {"moments": moments(ranks.data), "reverse passes": per_layer_reverse(ranks)}
        told["passes"] = {method: [per_layer(ranks, method, count) for count in (0, 1, 2)] for method in PASSES}
        ranks.data = replace(ranks.data, exchanges=True)
        told["sums"] = sums(ranks.data)
        data_axis.FEW = 0
        told["larger sums"] = sums(ranks.data)
        told["hypergradients"] = hypergradients(ranks)
    (folder / f"{environment.rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sums")
    ended = start_ranks([__file__, str(folder)], RANKS, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * RANKS
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("size", ["sums", "larger sums"])
def test_sums_are_added_in_rank_order(by_rank: list[dict[str, Any]], size: str) -> None:
    parts = [summands(rank) for rank in range(RANKS)]
    total = parts[0] + parts[1] + parts[2]
    assert not torch.equal(total, parts[2] + parts[1] + parts[0])  # the order shows
    for rank, told in enumerate(by_rank):
        got = told[size]
        assert torch.equal(torch.tensor(got["sum"]), total)
        assert got["number"] == total[0, 0].item()
        columns = DataAxis(rank, RANKS).columns(WIDTH)
        assert torch.equal(torch.tensor(got["columns"]), total[:, columns])
        mine = [part + rank for part in parts]
        assert torch.equal(torch.tensor(got["stack"]), mine[0] + mine[1] + mine[2])


@pytest.mark.parametrize("method", PASSES)
def test_batch_norm_crosses_the_axis_once_per_pass(by_rank: list[dict[str, Any]], method: str) -> None:
    plain, product = PASSES[method]
    first = plain if method == "jvp" else plain + product
    assert all(told["passes"][method] == [plain, first, first + product] for told in by_rank)


def test_batch_norm_crosses_the_axis_once_per_pass_of_a_reverse_sweep(by_rank: list[dict[str, Any]]) -> None:
    # The sweep forward: forward and backward. The pull-back: both again, and back through each of them.
    assert [told["reverse passes"] for told in by_rank] == [2 + 4] * RANKS


def test_moments_far_from_zero_lose_no_digits(by_rank: list[dict[str, Any]]) -> None:
    x = far_from_zero()
    mean, variance = x.mean((0, 2)), x.var((0, 2), correction=0)
    for told in by_rank:
        assert told["moments"] == by_rank[0]["moments"]
        # Values are rounded to 1e-10 of their deviation, and means of 30 to a few of these; squares would lose all.
        assert relative_error(told["moments"][0], mean) < 1e-15
        assert relative_error(told["moments"][1], variance) < 1e-9


@pytest.mark.parametrize("way", [*PASSES, "reverse"])
def test_exchanged_sums_give_the_hypergradients_of_one_process(by_rank: list[dict[str, Any]], way: str) -> None:
    alone = hypergradients(ONE_RANK)[way]
    assert all(told["hypergradients"] == by_rank[0]["hypergradients"] for told in by_rank)
    assert relative_error(by_rank[0]["hypergradients"][way], alone) < ROUNDING


def test_a_share_without_the_other_parts_has_no_whole_moments() -> None:
    with pytest.raises(ValueError, match="other parts"):
        _whole_moments(far_from_zero(), WHOLE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
