"""Hypergradients on meshes of four ranks against one process. As a program, what each rank runs: `… FOLDER`, which has
the combinations to run in `wanted.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, TensorTask, conv_bn, flat, images, make_problem, mlp, relative_error
from selection import slow_unless, wanted
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimators import Estimate, Estimator, estimate_forward, estimate_reverse
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.outer.replicas import mean_over_replicas, run_number
from fds_dist.tangents.optimizers import SGD, Adam
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree

HORIZON = 3
"""One step more than an epoch has."""
SGD_BUCKETS = {"lr": [0.2, 0.1, 0.3], "momentum": [0.5, 0.8], "weight_decay": [0.02, 0.01]}
ADAM_BUCKETS = {"lr": [0.02, 0.01], "beta1": [0.8], "beta2": [0.9], "eps": [1e-3], "weight_decay": [0.1, 0.05]}
GROUPED_BUCKETS = {"lr.norm": [0.2, 0.1], "lr.rest": [0.1], "momentum": [0.5, 0.8], "weight_decay.norm": [0.01]}
GROUPED_BUCKETS["weight_decay.rest"] = [0.02, 0.01]
SHAPES = {
    "4x1x1": MeshShape(4, 1, 1),
    "1x4x1": MeshShape(1, 4, 1),
    "1x1x4": MeshShape(1, 1, 4),
    "2x2x1": MeshShape(2, 2, 1),
    "1x2x2": MeshShape(1, 2, 2),
}

REPLICATED = ("double backward", "greedy")
"""The cases that run on replicas too: they know nothing of each other before the mean is taken."""

ROUNDING = 1e-12
"""Sums over parts of a batch round differently: 1e-16 each, through a few steps whose errors grow a little each."""


class VaryingTask(TensorTask):
    """Batches and weights that differ from outer step to outer step; validation batches of 13 and 3 samples."""

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = (part.roll(7 * outer_step + epoch, 0) for part in self.train)
        return zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(13) for part in self.val), strict=True)  # 3 are too few for 4 ranks to split


def task(build: Any = conv_bn) -> VaryingTask:
    """Batches of 10: parts of 2 and 3 samples on four ranks."""
    return VaryingTask(build, images(20, "train"), images(16, "val"), batch_size=10)


def mlp_with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.BatchNorm1d(7, momentum=None), nn.SiLU(), nn.Linear(7, 4))


@dataclass(frozen=True)
class Case:
    problem: Problem
    estimator: Estimator = estimate_forward

    @property
    def values(self) -> list[float]:
        buckets = ADAM_BUCKETS if "beta1" in self.problem.optimizer.defaults else SGD_BUCKETS
        return flat(GROUPED_BUCKETS if self.problem.groups else buckets)


def free(adaptive: bool = False, **options: Any) -> Problem:
    buckets = ADAM_BUCKETS if adaptive else SGD_BUCKETS
    return make_problem(task(mlp), buckets, optimizer=ScheduleFree(adaptive), **options)


def cases() -> dict[str, Case]:
    sgd = partial(make_problem, task(), SGD_BUCKETS)
    # The columns of four ranks end within parameters of `conv_bn`, whose layers 1 and 4 are batch-norm.
    grouped = make_problem(task(), GROUPED_BUCKETS, groups={"norm": "^[14]", "rest": ""})
    averaged = make_problem(task(mlp_with_batch_norm), SGD_BUCKETS, ema=0.7, val_batch_norm="running")
    traced = make_problem(task(mlp), SGD_BUCKETS, clip_gradient=0.2)
    traced = replace(traced, tangents=replace(traced.tangents, compile="trace"))  # one trace: that of one tangent
    return {
        "traced": Case(replace(traced, tangents=replace(traced.tangents, compiled_chunk=2))),
        "traced micro-batches": Case(replace(traced, accumulate=2)),
        "traced reverse": Case(traced, estimate_reverse),
        "traced greedy": Case(traced, greedy_estimator(0.5)),
        "double backward": Case(sgd(clip_gradient=0.2, clip_hvp=3.0)),
        "jvp in chunks": Case(sgd(method="jvp", chunk_size=2, optimizer=SGD(nesterov=True))),
        "adamw": Case(make_problem(task(), ADAM_BUCKETS, optimizer=Adam(decoupled=True))),
        "adamw jvp": Case(make_problem(task(), ADAM_BUCKETS, optimizer=Adam(decoupled=True), method="jvp")),
        "running": Case(make_problem(task(mlp_with_batch_norm), SGD_BUCKETS, val_batch_norm="running")),
        "reverse": Case(sgd(), estimate_reverse),
        "reverse, some states": Case(keeping_some(sgd()), estimate_reverse),
        "greedy": Case(sgd(), greedy_estimator(0.5)),
        "linear": Case(sgd(shape="linear")),
        "linear greedy": Case(sgd(shape="linear"), greedy_estimator(0.5)),
        "accumulated": Case(sgd(accumulate=3)),  # 4, 3 and 3 samples: four ranks take three samples whole
        "accumulated jvp": Case(sgd(accumulate=2, method="jvp", chunk_size=2)),
        "accumulated reverse": Case(sgd(accumulate=3), estimate_reverse),
        "clipped norm": Case(sgd(clip_gradient=0.2, clip_norm=0.4, method="jvp")),
        "clipped norm reverse": Case(sgd(clip_norm=0.4), estimate_reverse),
        "schedule-free": Case(free()),
        "schedule-free jvp": Case(free(adaptive=True, method="jvp", chunk_size=2)),
        "schedule-free reverse": Case(free(), estimate_reverse),
        "schedule-free groups": Case(
            make_problem(task(mlp), GROUPED_BUCKETS, optimizer=ScheduleFree(), groups={"norm": "^1", "rest": ""})
        ),
        "schedule-free greedy": Case(free(adaptive=True), greedy_estimator(0.5)),
        "averaged": Case(averaged),
        "averaged reverse": Case(averaged, estimate_reverse),
        "averaged greedy": Case(averaged, greedy_estimator(0.5)),
        "grouped": Case(grouped),
        "grouped reverse": Case(grouped, estimate_reverse),
    }


def keeping_some(problem: Problem) -> Problem:
    """The problem whose reverse sweep has no memory to keep every state in."""
    return replace(problem, tangents=replace(problem.tangents, kept_bytes=0))


class Losses:
    """The `OnStep` that keeps each step's loss, of the whole batch."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.seen = ranks, []

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        self.seen.append(self.ranks.data.sum(loss).item())
        return True


def estimated(case: Case, ranks: Ranks, run: int) -> tuple[Estimate, list[float]]:
    losses = Losses(ranks)
    return case.estimator(InnerRun(case.problem, case.values, run, HORIZON, ranks, on_step=losses)), losses.seen


def state_bytes(ranks: Ranks) -> tuple[int, int]:
    """Bytes of tangents, and of optimizer state, that this rank keeps for all of AdamW's elements."""
    problem = cases()["adamw"].problem
    elements = sorted(range(problem.space.size), key=problem.space.starts(4).__getitem__)
    training, tangents = run_horizon(InnerRun(problem, problem.space.initial(), 0, 4, ranks), elements)
    return tuple(  # type: ignore[return-value]
        sum(tensor.numel() * tensor.element_size() for tensor in tree_flatten(part)[0])
        for part in ((tangents.weights, tangents.optimizer), training.state.optimizer)
    )


def names_on(mesh: str) -> list[str]:
    """The cases on a mesh. Four ranks that trace at once take long: in parts of batches alone see
    tests/inner/test_compiled_data_axis.py."""
    names = cases() if SHAPES[mesh].replica == 1 else REPLICATED
    return [name for name in names if mesh != "1x1x4" or not name.startswith("traced")]


ON_PARTS = [(mesh, name) for mesh in ("1x1x4", "1x2x2") for name in names_on(mesh)]
"""The combinations whose ranks see parts of a batch."""
IN_FOUR_PARTS = ("double backward", "running", "reverse", "greedy", "accumulated", "schedule-free", "averaged greedy")


def kept(mesh: str, name: str) -> bool:
    """Whether CI runs a combination of `ON_PARTS`.

    Smaller parts are other sizes of the same sums, so that CI has one of each way through the batch on 1x1x4, and all
    other cases on 1x2x2. Traced steps on parts are in tests/inner/test_compiled_data_axis.py.
    """
    in_four_parts = name in IN_FOUR_PARTS
    return in_four_parts if mesh == "1x1x4" else not in_four_parts and "traced" not in name


def run_all(folder: Path) -> None:
    """The cases that are wanted on all meshes; each rank writes what it got."""
    environment = read_environment()
    found: dict[str, Any] = {}
    asked = json.loads((folder / "wanted.json").read_text())
    for mesh, shape in SHAPES.items():
        with Ranks(environment, shape, CPU) as ranks:
            for name in (name for name in names_on(mesh) if [mesh, name] in asked):
                case = cases()[name]
                estimate, losses = estimated(case, ranks, run_number(1, ranks))
                estimate = mean_over_replicas(estimate, ranks)
                found[f"{mesh} {name}"] = {
                    "hypergradients": estimate.hypergradients,
                    "val_loss": estimate.val_loss,
                    "val_accuracy": estimate.val_accuracy,
                    "spread": estimate.spread,
                    "losses": losses,
                    "replica": ranks.replica,
                }
            found[f"{mesh} bytes"] = state_bytes(ranks)
    with Ranks(environment, SHAPES["1x1x4"], CPU, whole_batch_norm=False) as ranks:
        estimate, _ = estimated(cases()["running"], ranks, 0)
        found["part"] = estimate.hypergradients
    (folder / f"{environment.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def by_rank(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Per rank of four, what it got."""
    folder = tmp_path_factory.mktemp("meshes")
    (folder / "wanted.json").write_text(json.dumps(wanted(request, "mesh", "name")))
    ended = start_ranks([__file__, str(folder)], 4, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 4
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


@cache
def alone(name: str, run: int = 1) -> tuple[Estimate, list[float]]:
    """What one process gets for a case and a run number."""
    return estimated(cases()[name], ONE_RANK, run)


@pytest.mark.parametrize(("mesh", "name"), [("1x4x1", name) for name in cases()])
def test_tangent_ranks_get_the_same_bits_as_one_process(mesh: str, name: str, by_rank: list[dict[str, Any]]) -> None:
    estimate, losses = alone(name)
    for rank in by_rank:
        got = rank[f"{mesh} {name}"]
        if cases()[name].problem.chunk_size == 1:
            assert got["hypergradients"] == estimate.hypergradients
        else:  # a batched product's last bits depend on the number of tangents in the batch
            assert relative_error(got["hypergradients"], estimate.hypergradients) < ROUNDING
        assert (got["val_loss"], got["val_accuracy"]) == (estimate.val_loss, estimate.val_accuracy)
        assert got["losses"] == losses


@pytest.mark.parametrize(("mesh", "name"), slow_unless(kept, ON_PARTS))
def test_data_ranks_agree_with_one_process_to_rounding(mesh: str, name: str, by_rank: list[dict[str, Any]]) -> None:
    estimate, losses = alone(name)
    got = [rank[f"{mesh} {name}"] for rank in by_rank]
    assert all(rank == got[0] for rank in got)  # the same bits on every rank
    assert relative_error(got[0]["hypergradients"], estimate.hypergradients) < ROUNDING
    assert got[0]["losses"] == pytest.approx(losses, rel=ROUNDING)
    assert got[0]["val_loss"] == pytest.approx(estimate.val_loss, rel=ROUNDING)
    assert got[0]["val_accuracy"] == pytest.approx(estimate.val_accuracy, rel=ROUNDING)


@pytest.mark.parametrize("name", REPLICATED)
@pytest.mark.parametrize(("mesh", "replicas"), [("4x1x1", 4), ("2x2x1", 2)])
def test_replicas_give_the_mean_and_the_spread_of_single_runs(
    mesh: str, replicas: int, name: str, by_rank: list[dict[str, Any]]
) -> None:
    runs = [alone(name, replicas + replica) for replica in range(replicas)]
    columns = list(zip(*(estimate.hypergradients for estimate, _ in runs), strict=True))
    for rank in by_rank:
        got = rank[f"{mesh} {name}"]
        assert got["losses"] == runs[got["replica"]][1]
        # Means and deviations of the same numbers, summed in another order.
        assert got["hypergradients"] == pytest.approx([mean(column) for column in columns], rel=1e-13)
        assert got["spread"] == pytest.approx([stdev(column) for column in columns], rel=1e-13)
        assert got["val_loss"] == pytest.approx(mean(estimate.val_loss for estimate, _ in runs), rel=1e-13)


def test_data_ranks_keep_a_share_of_the_tangents_and_of_the_state(by_rank: list[dict[str, Any]]) -> None:
    tangents, state = state_bytes(ONE_RANK)
    for mesh, parts in (("1x1x4", 4), ("1x2x2", 2)):
        for rank in by_rank:
            # Within 5 %: columns are ⌈D/P⌉ or fewer, and Adam's step count is whole on every rank.
            assert rank[f"{mesh} bytes"] == pytest.approx([tangents / parts, state / parts], rel=0.05)


def test_batch_norm_of_parts_is_the_same_on_all_ranks_but_another_derivative(by_rank: list[dict[str, Any]]) -> None:
    whole, _ = estimated(cases()["running"], ONE_RANK, 0)
    assert all(rank["part"] == by_rank[0]["part"] for rank in by_rank)
    # Statistics of 2 or 3 samples instead of 10 are another training run.
    assert relative_error(by_rank[0]["part"], whole.hypergradients) > 1e-3


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
