"""What a run will cost before it starts: who owns which tangent, memory, traffic and time per rank.

Shapes: D = weights, K = learned numbers, P = ranks of the `data` axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_flatten

from fds_dist.commands.check.measurement import StepMeasurement, measure_step
from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner.estimators.reverse import checkpoint_spacing
from fds_dist.inner.plan import REVERSE_COST, Plan, make_plan
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import initial_state
from fds_dist.outer.loop import OuterSettings


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: int
    """Whole on every rank."""
    state: int
    """The optimizer's, one P-th of it."""
    tangents: int
    """Of weights and state, one P-th of each that the rank owns. Reverse mode: the states that it keeps over time."""
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
    reverse: RankCost
    """Any rank's, by reverse mode."""
    estimator: str = "forward"
    """The one that the config asks for."""

    @property
    def costliest(self) -> RankCost:
        """The ranks that the others wait for, by forward mode."""
        return max(self.ranks, key=lambda rank: rank.plain_steps)

    @property
    def chosen(self) -> RankCost:
        """The ranks that the others wait for, by the estimator that the config asks for."""
        return self.reverse if self.estimator == "reverse" else self.costliest

    @property
    def total_seconds(self) -> float:
        """Predicted time of all outer steps."""
        return self.chosen.seconds * sum(self.horizons) / self.plan.horizon

    def speed_up(self, tangent: int) -> float:
        """How much faster an outer step is with `tangent` ranks on that axis instead of those it has."""
        plan = make_plan(self.plan.starts, self.plan.horizon, tangent)
        return self.costliest.plain_steps * self.shape.data / max(map(plan.cost, range(tangent)))


def cost_report(problem: Problem, settings: OuterSettings, shape: MeshShape, estimator: str = "forward") -> CostReport:
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

    return CostReport(
        weights=network.layout.size,
        shape=shape,
        horizons=horizons,
        plan=plan,
        ranks=tuple(map(cost_of, range(shape.tangent))),
        measured=measured,
        one_rank_plain_steps=make_plan(plan.starts, horizon, 1).cost(0),
        reverse=_reverse_cost(weights, state, horizon, shape, measured),
        estimator=estimator,
    )


def _reverse_cost(
    weights: Tensor, state: Sequence[Tensor], horizon: int, shape: MeshShape, measured: StepMeasurement
) -> RankCost:
    """Reverse mode spreads over the `data` axis alone, with the whole state on every rank."""
    spacing = checkpoint_spacing(horizon)
    kept = -(-horizon // spacing) + spacing  # over the horizon, and within one stretch between them
    peak = measured.peak_bytes  # a pull-back goes twice through the graph, as the product of one tangent does
    return RankCost(
        ranks=tuple(range(shape.replica * shape.tangent * shape.data)),
        elements=(),
        plain_steps=REVERSE_COST * horizon / shape.data,
        memory=Memory(_bytes([weights]), _bytes(state), kept * _bytes([weights, *state]), peak),
        # The gradient, summed three times (there, back and in the pull-back), and the adjoint of the weights.
        step_traffic=round(8 * _bytes([weights]) * (shape.data - 1) / shape.data),
        seconds=REVERSE_COST * horizon * measured.plain_seconds,
    )


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
