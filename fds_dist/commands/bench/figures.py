"""Ratios taken in one run, so that they can be compared between machines.

Shapes: K = learned numbers, T = horizon.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from fds_dist.commands.bench.report import LONGER
from fds_dist.commands.bench.steps import Clock
from fds_dist.commands.verify.derivatives import relative_error
from fds_dist.common.batch import Part
from fds_dist.common.memory import peak_bytes
from fds_dist.common.timing import median_seconds, seconds_of
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plan import make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.point import PointInputs, PointMaker
from fds_dist.tangents.products import DoubleBackwardPoint

REPEATS = 3
SHORTEST = 20
"""Inner steps of a measured run, or the number of buckets where that is larger."""
SLACK = 2.0
"""Over the cost model: what a piece of work is thought to take before it is measured."""


class Ratios:
    """The figures of one problem on the ranks of this launch. Called on all ranks alike; rank 0's times count.

    A figure is None where it would take longer than the clock allows, by the cost model.
    """

    def __init__(self, problem: Problem, ranks: Ranks, plain_seconds: float, clock: Clock) -> None:
        self.problem, self.ranks, self.plain_seconds, self.clock = problem, ranks, plain_seconds, clock
        self.buckets = max(owner.buckets for owner in problem.space.learned)
        self.horizon = max(SHORTEST, self.buckets)
        self.plan = make_plan(problem.space.starts(self.horizon), self.horizon, ranks.shape.tangent)
        self.everything = make_plan(self.plan.starts, self.horizon, 1)
        self.cost = self.everything.cost(0)
        """Of the measured run on one rank, in plain steps."""

    def speed(self) -> tuple[float | None, float | None]:
        """`step_cost` and `scaling_efficiency` of `BenchReport`."""
        ranks, several = self.ranks, self.ranks.world_size > 1
        if not self._allows((REPEATS + 1) * self.cost * (2 if several else 1)):
            return None, None
        alone = self._on_first(
            lambda: median_seconds(lambda: self._run(self.everything.owned[0]), self.problem.device, REPEATS)
        )
        step_cost = alone / (self.plain_seconds * self.cost)
        if not several:
            return step_cost, None
        together = self._slowest(lambda: self._run(self.plan.owned[ranks.tangent_rank]))
        return step_cost, alone / together / (self.cost / max(map(self.plan.cost, range(ranks.shape.tangent))))

    def vs_sequential(self) -> float | None:
        """See `BenchReport`."""
        if not self._allows(2 * (REPEATS + 1) * 4 * self.problem.space.size):
            return None
        return self._on_first(lambda: _vs_sequential(self.problem))

    def memory_growth(self) -> float | None:
        """See `BenchReport`."""
        steps = (LONGER + 1) * self.buckets
        if not self._allows(steps * self.cost / self.horizon):
            return None
        return self._on_first(self._memory_growth)

    def precision_errors(self) -> dict[str, float]:
        """See `BenchReport`; empty where there is no time."""
        return {
            name: self._precision_error(other)
            for name, other in _precisions(self.problem).items()
            if self._allows(3 * self.cost)  # float64 takes twice as long
        }

    def _allows(self, plain_steps: float) -> bool:
        """Whether there is time for work of that cost; rank 0 says so for all."""
        return self.ranks.broadcast_object(SLACK * plain_steps * self.plain_seconds < self.clock.left)

    def _on_first(self, measure: Callable[[], float]) -> float:
        """Rank 0's measurement while the others wait, on all ranks."""
        return self.ranks.broadcast_object(measure() if self.ranks.is_first else 0.0)

    def _slowest(self, run: Callable[[], object]) -> float:
        """Seconds until the last rank has run, medians; the ranks start together."""
        run()
        seconds = []
        for _ in range(REPEATS):
            dist.barrier(self.ranks.group)
            seconds.append(max(self.ranks.gather_objects(seconds_of(run, self.ranks.device))))
        return statistics.median(seconds)

    def _run(self, elements: Sequence[int], horizon: int | None = None) -> None:
        run = InnerRun(self.problem, self.problem.space.initial(), 0, horizon or self.horizon)
        run_horizon(run, elements)
        if self.problem.device.type == "cuda":
            torch.cuda.synchronize(self.problem.device)

    def _memory_growth(self) -> float:
        elements = self.everything.owned[0]
        short, long = (
            peak_bytes(lambda steps=steps: self._run(elements, steps), self.problem.device)
            for steps in (self.buckets, LONGER * self.buckets)
        )
        return long / short

    def _precision_error(self, other: Problem) -> float:
        def hypergradients(of: Problem) -> list[float]:
            return estimate_forward(InnerRun(of, of.space.initial(), 0, self.horizon, self.ranks)).hypergradients

        return relative_error(hypergradients(other), hypergradients(self.problem.in_float64()))


def _vs_sequential(problem: Problem) -> float:
    """The products of all tangents on the first batch, one graph each, over ours."""
    network = problem.network(0)
    loss, weights = problem.training_loss(network), network.initial_weights
    part = network.cast(Part(next(problem.batches(0))))
    theta = weights.new_zeros(problem.theta_size)
    inputs = PointInputs(loss, weights, theta, network.initial_buffers, part, problem.chunk_size > 1)
    directions = torch.randn(problem.space.size, len(weights), dtype=weights.dtype).to(weights)
    theta_directions = directions.new_zeros(len(directions), len(theta))

    def products(make_point: PointMaker, rows: slice) -> Callable[[], None]:
        def run() -> None:
            make_point(inputs).products(directions[rows], theta_directions[rows], {})
            if problem.device.type == "cuda":
                torch.cuda.synchronize(problem.device)

        return run

    def ours() -> None:
        for first in range(0, len(directions), size):
            products(problem.make_point, slice(first, first + size))()

    # One graph serves all of double_backward's products, whatever the chunk.
    size = len(directions) if problem.tangents.method == "double_backward" else problem.chunk_size
    sequential = [products(DoubleBackwardPoint, slice(row, row + 1)) for row in range(len(directions))]
    one_by_one = median_seconds(lambda: [run() for run in sequential], problem.device, REPEATS)
    return one_by_one / median_seconds(ours, problem.device, REPEATS)


def _precisions(problem: Problem) -> dict[str, Problem]:
    """The problem in float32, and under autocast where it asks for that."""
    float32 = replace(problem, dtype=torch.float32, low=None)
    return {"float32": float32} if problem.low is None else {"float32": float32, "bf16": problem}
