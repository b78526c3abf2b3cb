"""What this machine makes of the cost model: ratios taken in one run, so that they can be compared between machines.

Shapes: K = learned numbers, T = horizon.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn

from fds_dist.build import ModelBuilder
from fds_dist.commands.inputs import Source, launched, one_run_per_rank
from fds_dist.commands.verify.derivatives import relative_error
from fds_dist.common.batch import Part
from fds_dist.common.console import as_html
from fds_dist.common.memory import peak_bytes
from fds_dist.common.timing import median_seconds, seconds_of
from fds_dist.common.words import ABSENT, counted, duration
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.measurement import measure_step
from fds_dist.inner.plan import make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.products import DoubleBackwardPoint
from fds_dist.tasks.base import Task

REPEATS = 3
LONGER = 100
"""How many times longer the horizon is whose memory is compared."""
SHORTEST = 20
"""Inner steps of a measured run, or the number of buckets where that is larger."""


@dataclass(frozen=True)
class BenchReport:
    """Ratios; 1 is the best that can be, but for `vs_sequential` (more is better) and `precision_error` (0 is)."""

    step_cost: float
    """Time of a run with tangents over that of plain steps times (1 + 2k), k being the tangents that are live."""
    vs_sequential: float
    """Time of Hessian-vector products by one double-backward pass each, with a graph of its own, over ours."""
    scaling_efficiency: float | None
    """Speed-up by the ranks of this launch over the best that the cost model allows; None on one rank."""
    memory_growth: float
    """Peak memory at 100 times the horizon over that at 1 time."""
    precision_error: dict[str, float]
    """Per dtype the relative error of the hypergradients against float64."""
    plain_seconds: float
    """A plain training step."""
    tangents: int
    """K"""
    horizon: int
    """Inner steps of the measured run."""
    method: str
    """Of Hessian-vector products."""
    weights: int
    world_size: int
    device: str
    torch_version: str

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)

    def _repr_html_(self) -> str:
        return as_html(partial(print_bench, self))


def run_bench(problem: Problem, ranks: Ranks) -> BenchReport:
    """Measures everything on the first batches of `problem`. Called on all ranks; rank 0's times count."""
    horizon = max(SHORTEST, *(owner.buckets for owner in problem.space.learned))
    plan = make_plan(problem.space.starts(horizon), horizon, ranks.shape.tangent)
    everything = make_plan(plan.starts, horizon, 1)
    plain = measure_step(problem).plain_seconds

    def run_of(elements: Sequence[int]) -> Callable[[], object]:
        return lambda: _run(problem, elements, horizon)

    alone = _on_first(ranks, lambda: median_seconds(run_of(everything.owned[0]), problem.device, REPEATS))
    together = _slowest(ranks, run_of(plan.owned[ranks.tangent_rank])) if ranks.world_size > 1 else alone
    best = everything.cost(0) / max(map(plan.cost, range(ranks.shape.tangent)))
    return BenchReport(
        step_cost=alone / (plain * everything.cost(0)),
        vs_sequential=_on_first(ranks, lambda: _vs_sequential(problem)),
        scaling_efficiency=alone / together / best if ranks.world_size > 1 else None,
        memory_growth=_on_first(ranks, lambda: _memory_growth(problem, everything.owned[0])),
        precision_error={
            name: _precision_error(problem, other, horizon, ranks) for name, other in _precisions(problem).items()
        },
        plain_seconds=plain,
        tangents=problem.space.size,
        horizon=horizon,
        method=problem.tangents.method,
        weights=problem.network(0).layout.size,
        world_size=ranks.world_size,
        device=_device_name(problem.device),
        torch_version=torch.__version__,
    )


def _on_first(ranks: Ranks, measure: Callable[[], float]) -> float:
    """Rank 0's measurement while the others wait, on all ranks."""
    return ranks.broadcast_object(measure() if ranks.is_first else 0.0)


def _slowest(ranks: Ranks, run: Callable[[], object]) -> float:
    """Seconds until the last rank has run, medians; the ranks start together."""
    run()
    seconds = []
    for _ in range(REPEATS):
        dist.barrier(ranks.group)
        seconds.append(max(ranks.gather_objects(seconds_of(run, ranks.device))))
    return statistics.median(seconds)


def _run(problem: Problem, elements: Sequence[int], horizon: int) -> None:
    run_horizon(InnerRun(problem, problem.space.initial(), 0, horizon), elements)
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)


def _vs_sequential(problem: Problem) -> float:
    """The products of all tangents on the first batch, one graph each, over ours."""
    network = problem.network(0)
    loss, weights = problem.training_loss(network), network.initial_weights
    part = network.cast(Part(next(problem.batches(0))))
    theta = weights.new_zeros(problem.theta_size)
    directions = torch.randn(problem.space.size, len(weights), dtype=weights.dtype).to(weights)
    theta_directions = directions.new_zeros(len(directions), len(theta))

    def products(make_point: Callable[..., DoubleBackwardPoint], rows: slice) -> Callable[[], None]:
        def run() -> None:
            point = make_point(loss, weights, theta, network.initial_buffers, part, 0, problem.chunk_size > 1)
            point.products(directions[rows], theta_directions[rows], {})
            if problem.device.type == "cuda":
                torch.cuda.synchronize(problem.device)

        return run

    def ours() -> None:
        for first in range(0, len(directions), size):
            products(problem.make_point, slice(first, first + size))()  # type: ignore[arg-type]

    # One graph serves all of double_backward's products, whatever the chunk.
    size = len(directions) if problem.tangents.method == "double_backward" else problem.chunk_size
    sequential = [products(DoubleBackwardPoint, slice(row, row + 1)) for row in range(len(directions))]
    one_by_one = median_seconds(lambda: [run() for run in sequential], problem.device, REPEATS)
    return one_by_one / median_seconds(ours, problem.device, REPEATS)


def _memory_growth(problem: Problem, elements: Sequence[int]) -> float:
    shortest = max(owner.buckets for owner in problem.space.learned)
    short, long = (
        peak_bytes(lambda steps=steps: _run(problem, elements, steps), problem.device)
        for steps in (shortest, LONGER * shortest)
    )
    return long / short


def _precisions(problem: Problem) -> dict[str, Problem]:
    """The problem in float32, and under autocast where it asks for that."""
    float32 = replace(problem, dtype=torch.float32, low=None)
    return {"float32": float32} if problem.low is None else {"float32": float32, "bf16": problem}


def _precision_error(problem: Problem, other: Problem, horizon: int, ranks: Ranks) -> float:
    def hypergradients(of: Problem) -> list[float]:
        return estimate_forward(InnerRun(of, problem.space.initial(), 0, horizon, ranks)).hypergradients

    return relative_error(hypergradients(other), hypergradients(problem.in_float64()))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def print_bench(report: BenchReport, console: Console) -> None:
    """The ratios with what they mean."""
    console.print(
        f"[bold]Bench[/bold]  {counted(report.weights, 'weight')}, {counted(report.tangents, 'tangent')} by "
        f"{report.method}, {report.horizon:,} inner steps; {report.world_size} x {report.device}, "
        f"PyTorch {report.torch_version}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    scaling = report.scaling_efficiency
    rows = {
        "step_cost": (f"{report.step_cost:.2f}", "time over plain steps x (1 + 2 tangents); 1 is the least possible"),
        "vs_sequential": (f"{report.vs_sequential:.2f}", "times as fast as one double-backward pass per tangent"),
        "scaling_efficiency": (
            ABSENT if scaling is None else f"{scaling:.2f}",
            "speed-up by these ranks over the best possible; 1 is the best (needs several ranks)",
        ),
        "memory_growth": (f"{report.memory_growth:.4f}", f"peak memory at {LONGER} times the horizon over 1 time"),
        **{
            f"precision_error {dtype}": (f"{error:.1e}", "relative error of the hypergradients against float64")
            for dtype, error in report.precision_error.items()
        },
        "plain_seconds": (duration(report.plain_seconds), "a plain training step here"),
    }
    for name, (value, meaning) in rows.items():
        table.add_row(name, value, meaning)
    console.print(table)


BENCHED: dict[str, Any] = {
    "task": {"name": "digits", "batch_size": 64},
    "model": {"name": "lenet"},
    "hyperparameters": {
        "lr": {"init": 0.05, "step": 0.1, "buckets": 5},
        "momentum": {"init": 0.5, "step": 0.1},
        "weight_decay": {"init": 1e-4, "step": 1e-4},
    },
}
"""The config that is measured where the user names none."""


def bench(
    config: Source | None = None,
    overrides: Sequence[str] = (),
    *,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
) -> BenchReport:
    """Measures the cost model's figures on the ranks of this launch.

    Args:
        config: a YAML file, or the config as a mapping; None: a small network on digits.
        overrides: `key.sub=value` strings.
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.

    Returns:
        Ratios that can be compared between machines, and what they were measured on.

    Raises:
        UserError: the input is wrong.

    Example:
        >>> report = fds_dist.bench(overrides=["model={name: mlp, hidden: [8]}", "task.batch_size=32"])
        >>> report.tangents, report.world_size
        (7, 1)
    """
    source = BENCHED if config is None else config
    with launched(source, overrides, prepare=one_run_per_rank, task=task, model=model) as (built, ranks):
        return run_bench(built.problem, ranks)
