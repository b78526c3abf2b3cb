"""What a run will cost before it starts: who owns which tangent, memory and time per rank.

Shapes: D = weights, K = learned numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_flatten

from fds_dist.distributed.mesh import MeshShape
from fds_dist.distributed.plan import Plan, make_plan
from fds_dist.engine.inner_run import initial_state
from fds_dist.engine.outer_loop import OuterSettings
from fds_dist.engine.problem import Problem
from fds_dist.schedule import Segment
from fds_dist.tangents import differentiate

REVERSE_COST = 4.0
"""Plain steps per step of a reverse sweep, whatever K is: forward twice, and a pull-back that costs two."""

REPEATS = 5


@dataclass(frozen=True)
class RankCost:
    """One rank's share of an outer step."""

    rank: int
    elements: tuple[int, ...]
    """Positions in λ of the tangents it owns."""
    plain_steps: float
    """Cost of the horizon in plain training steps."""
    memory_bytes: int
    """Weights, optimizer state, gradient and all tangents; without activations."""
    seconds: float
    """Predicted from the measured step."""


@dataclass(frozen=True)
class CostReport:
    """The cost of the longest outer step on each rank."""

    weights: int
    """D"""
    horizons: tuple[int, ...]
    plan: Plan
    ranks: tuple[RankCost, ...]
    plain_seconds: float
    """Measured: one plain training step here."""
    tangent_seconds: float
    """Measured: what one more tangent adds to a step here."""
    one_rank_plain_steps: float
    """Cost of the horizon if one rank owned all tangents."""

    @property
    def costliest(self) -> RankCost:
        """The rank that the others wait for."""
        return max(self.ranks, key=lambda rank: rank.plain_steps)

    @property
    def total_seconds(self) -> float:
        """Predicted time of all outer steps."""
        horizon = self.plan.horizon
        return self.costliest.seconds * sum(self.horizons) / horizon

    @property
    def reverse_plain_steps(self) -> float:
        """Cost of the horizon by reverse mode, on every rank."""
        return REVERSE_COST * self.plan.horizon


def cost_report(problem: Problem, settings: OuterSettings, shape: MeshShape) -> CostReport:
    """Plans the longest outer step for `shape` and measures a step on this device; trains nothing."""
    horizons = tuple(problem.horizon(epochs) for epochs in settings.epochs)
    horizon = max(horizons)
    plan = make_plan(problem.space.starts(horizon), horizon, shape.tangent)
    plain, tangent = measure_step(problem)
    network = problem.network(0)
    state = initial_state(problem, network)
    copies = [network.initial_weights, *tree_flatten(state.optimizer)[0]]
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in copies)
    gradient_bytes = copies[0].numel() * copies[0].element_size()
    ranks = tuple(
        RankCost(
            rank=rank,
            elements=elements,
            plain_steps=plan.cost(rank),
            memory_bytes=state_bytes * (1 + len(elements)) + gradient_bytes,
            seconds=horizon * plain + plan.load(rank) * tangent,
        )
        for rank, elements in enumerate(plan.owned)
    )
    alone = make_plan(plan.starts, horizon, 1).cost(0)
    return CostReport(network.layout.size, horizons, plan, ranks, plain, tangent, alone)


def measure_step(problem: Problem) -> tuple[float, float]:
    """Seconds of a plain step, and of what each tangent adds to it; medians, on this device, on the first batch."""
    network = problem.network(0)
    loss = problem.training_loss(network)
    state = initial_state(problem, network)
    batch = network.cast(next(problem.batches(0)))
    h = problem.values_in(Segment(0, 1, dict.fromkeys(problem.space.bucket_counts, 0)), problem.space.initial())
    theta = problem.theta(h)
    tangents = torch.zeros(2, network.layout.size, dtype=problem.dtype, device=problem.device)
    theta_tangents = theta.new_zeros(2, len(theta))

    update = problem.update(network)

    def plain() -> None:
        leaf = state.weights.detach().requires_grad_()
        (gradient,) = differentiate(loss(leaf, theta, batch)[0], leaf)
        update(state.weights, state.optimizer, gradient, h)

    def with_tangents(count: int) -> Callable[[], None]:
        def step() -> None:
            point = problem.make_point(loss, state.weights, theta, batch, 0, problem.chunk_size > 1)
            point.products(tangents[:count], theta_tangents[:count])

        return step

    plain_seconds = _median_seconds(plain, problem.device)
    one, two = (_median_seconds(with_tangents(count), problem.device) for count in (1, 2))
    return plain_seconds, max(two - one, 0.0)


def _median_seconds(step: Callable[[], None], device: torch.device) -> float:
    def timed() -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed()  # warm-up
    return statistics.median(timed() for _ in range(REPEATS))
