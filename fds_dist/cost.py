"""What a run will cost before it starts: who owns which tangent, memory, traffic and time per rank.

Shapes: D = weights, K = learned numbers, P = ranks of the `data` axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_flatten

from fds_dist.distributed.mesh import MeshShape
from fds_dist.distributed.plan import Plan, make_plan
from fds_dist.engine.inner_run import initial_state
from fds_dist.engine.outer_loop import OuterSettings
from fds_dist.engine.problem import Problem
from fds_dist.step_measurement import StepMeasurement, measure_step

REVERSE_COST = 4.0
"""Plain steps per step of a reverse sweep, whatever K is: forward twice, and a pull-back that costs two."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: int
    """Whole on every rank."""
    state: int
    """The optimizer's, one P-th of it."""
    tangents: int
    """Of weights and state, one P-th of each that the rank owns."""
    step: int
    """Measured: activations, gradient and products of one chunk of tangents at the peak of a step."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.tangents + self.step


@dataclass(frozen=True)
class RankCost:
    """The share in an outer step of the ranks that own the same tangents."""

    ranks: tuple[int, ...]
    """All of them: the data ranks of each replica."""
    elements: tuple[int, ...]
    """Positions in λ of the tangents they own."""
    plain_steps: float
    """Cost of the horizon in plain training steps of the whole batch."""
    memory: Memory
    """Of each of them."""
    step_traffic: int
    """Bytes that each of them sends in a step, once all its tangents are live."""
    seconds: float
    """Predicted from the measured step, without the time of communication."""


@dataclass(frozen=True)
class CostReport:
    """The cost of the longest outer step on each rank."""

    weights: int
    """D"""
    shape: MeshShape
    horizons: tuple[int, ...]
    plan: Plan
    ranks: tuple[RankCost, ...]
    """One for each place on the `tangent` axis."""
    measured: StepMeasurement
    """On one data rank's part of a batch."""
    one_rank_plain_steps: float
    """Cost of the horizon if one rank owned all tangents and saw whole batches."""

    @property
    def costliest(self) -> RankCost:
        """The ranks that the others wait for."""
        return max(self.ranks, key=lambda rank: rank.plain_steps)

    @property
    def total_seconds(self) -> float:
        """Predicted time of all outer steps."""
        horizon = self.plan.horizon
        return self.costliest.seconds * sum(self.horizons) / horizon

    @property
    def reverse_plain_steps(self) -> float:
        """Cost of the horizon by reverse mode, on every rank; it spreads over the `data` axis alone."""
        return REVERSE_COST * self.plan.horizon / self.shape.data

    def speed_up(self, tangent: int) -> float:
        """How much faster an outer step is with `tangent` ranks on that axis instead of those it has."""
        plan = make_plan(self.plan.starts, self.plan.horizon, tangent)
        return self.costliest.plain_steps * self.shape.data / max(map(plan.cost, range(tangent)))


def cost_report(problem: Problem, settings: OuterSettings, shape: MeshShape) -> CostReport:
    """Plans the longest outer step for `shape` and measures a step on this device; trains nothing."""
    horizons = tuple(problem.horizon(epochs) for epochs in settings.epochs)
    horizon = max(horizons)
    plan = make_plan(problem.space.starts(horizon), horizon, shape.tangent)
    chunk = min(problem.chunk_size, max(1, *map(len, plan.owned)))
    measured = measure_step(problem, shape.data, chunk)
    network = problem.network(0)
    weights = network.initial_weights
    state = tree_flatten(initial_state(problem, network).optimizer)[0]
    tensors = [weights, *state]

    def cost_of(place: int) -> RankCost:
        elements = plan.owned[place]
        gathered = chunk * _bytes([weights]) if shape.data > 1 else 0
        return RankCost(
            ranks=_ranks_at(place, shape),
            elements=elements,
            plain_steps=plan.cost(place) / shape.data,
            memory=Memory(
                weights=_bytes([weights]),
                state=_bytes(state, shape.data),
                tangents=_bytes(tensors, shape.data) * len(elements),
                step=measured.peak_bytes + gathered,
            ),
            step_traffic=_traffic(_bytes([weights]), len(elements), shape.data),
            seconds=horizon * measured.plain_seconds + plan.load(place) * measured.tangent_seconds,
        )

    ranks = tuple(map(cost_of, range(shape.tangent)))
    alone = make_plan(plan.starts, horizon, 1).cost(0)
    return CostReport(network.layout.size, shape, horizons, plan, ranks, measured, alone)


def _ranks_at(place: int, shape: MeshShape) -> tuple[int, ...]:
    """The ranks at one place of the `tangent` axis, over replicas and data."""
    return tuple(
        (replica * shape.tangent + place) * shape.data + part
        for replica in range(shape.replica)
        for part in range(shape.data)
    )


def _bytes(tensors: Sequence[Tensor], parts: int = 1) -> int:
    """Of `tensors`, or of the largest of `parts` parts of them; single numbers are whole on every rank."""
    return sum((-(-tensor.numel() // parts) if tensor.dim() else 1) * tensor.element_size() for tensor in tensors)


def _traffic(weight_bytes: int, tangents: int, parts: int) -> int:
    """Bytes that one data rank sends in a step at the least: the gradient and each product are reduced, the weights
    and each tangent are gathered. Without a `data` axis nothing crosses the network."""
    return round(2 * (1 + tangents) * weight_bytes * (parts - 1) / parts)
