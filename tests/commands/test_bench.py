"""`bench`: what it reports is a ratio of the right things. How large the times are is not judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, image_task, make_problem, mlp

from fds_dist.commands.bench.command import run_bench
from fds_dist.commands.bench.report import BenchReport
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.problem import Problem

BUCKETS = {"lr": [0.2, 0.1], "momentum": [0.5], "weight_decay": [0.01]}


def problem() -> Problem:
    return make_problem(image_task(mlp), BUCKETS, dtype=torch.float32)


def test_figures_of_one_rank() -> None:
    report = run_bench(problem(), ONE_RANK, networks={})
    assert json.loads(report.to_json())["tangents"] == 4
    assert report.step_cost is not None and report.vs_sequential is not None and report.memory_growth is not None
    assert report.step_cost > 0 and report.vs_sequential > 0 and report.plain_seconds > 0
    assert report.scaling_efficiency is None
    # The same tensors at any horizon; the slack is for what Python has not let go of yet.
    assert report.memory_growth < 1.1
    # float32 rounds at 6e-8, 20 steps amplify that; 0 would mean that float64 was compared with itself.
    assert 1e-9 < report.precision_error["float32"] < 1e-4


def test_two_ranks_report_their_scaling_alike(tmp_path: Path) -> None:
    ended = start_ranks([__file__], 2, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    first, second = (BenchReport(**json.loads(rank.out)) for rank in ended)
    assert first.scaling_efficiency is not None and first.scaling_efficiency > 0
    assert first.vs_sequential == second.vs_sequential
    assert first.world_size == 2


if __name__ == "__main__":
    environment = read_environment()
    with Ranks(environment, MeshShape(1, environment.world_size, 1), CPU) as ranks:
        sys.stdout.write(run_bench(problem(), ranks, networks={}).to_json())
