"""The predicted cost of a run: which rank owns which tangents, and memory, traffic and time per rank.

Shapes: D = weights, K = learned numbers, P = ranks of the `data` axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_flatten

from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner.measurement import StepMeasurement, measure_step
from fds_dist.inner.plan import Chunks, Plan, chunks_of, kept_states, make_plan, reverse_cost
from fds_dist.inner.problem import Problem
from fds_dist.inner.training import initial_state
from fds_dist.outer.progress import OuterSettings


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: int
    """All weights, on every rank."""
    state: int
    """One P-th of the optimizer's state."""
    tangents: int
    """One P-th of the rank's tangents, of weights and state. In reverse mode: the states kept over the horizon."""
    step: int
    """Measured: activations, gradient and products of one chunk of tangents at the peak of a step, and what is sent and
    received along the `data` axis meanwhile."""

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.weights + self.state + self.tangents + self.step


@dataclass(frozen=True)
class RankCost:
    """What one outer step costs each of the ranks that own the same tangents."""

    ranks: tuple[int, ...]
    """The ranks: the data ranks of every replica."""
    elements: tuple[int, ...]
    """Positions in λ of the tangents that the ranks own."""
    plain_steps: float
    """Cost of the horizon in plain training steps of the whole batch."""
    memory: Memory
    """Of each rank."""
    step_traffic: int
    """Bytes that each rank sends in a step when all its tangents are live."""
    seconds: float
    """Predicted from the measured step, without communication."""


@dataclass(frozen=True)
class CostReport:
    """The cost of the longest outer step on each rank."""

    weights: int
    """D."""
    shape: MeshShape
    horizons: tuple[int, ...]
    plan: Plan
    ranks: tuple[RankCost, ...]
    """One entry for each place on the `tangent` axis."""
    measured: StepMeasurement
    """One step on one data rank's part of a batch."""
    one_rank_plain_steps: float
    """Cost of the horizon if one rank owned all tangents and saw whole batches."""
    reverse: RankCost
    """The cost of reverse mode, the same on every rank."""
    keeps_every_state: bool = True
    """Whether reverse mode keeps the state of every step."""
    estimator: str = "forward"
    """The estimator that the config asks for."""
    directions: int = 0
    """R of the estimator random_directions."""
    chunks: Chunks | None = None
    """Of compiled steps; None where steps are eager."""

    @property
    def costliest(self) -> RankCost:
        """In forward mode, the ranks with the largest cost, for which all others wait."""
        return max(self.ranks, key=lambda rank: rank.plain_steps)

    @property
    def chosen(self) -> RankCost:
        """With the config's estimator, the ranks with the largest cost."""
        return self.reverse if self.estimator == "reverse" else self.costliest

    @property
    def total_seconds(self) -> float:
        """Predicted time of all outer steps."""
        return self.chosen.seconds * sum(self.horizons) / self.plan.horizon

    def speed_up(self, tangent: int) -> float:
        """How many times as fast an outer step becomes with `tangent` ranks on the tangent axis."""
        plan = make_plan(self.plan.starts, self.plan.horizon, tangent)
        slowest = max(plan.cost(rank, self.chunks) for rank in range(tangent))
        return self.costliest.plain_steps * self.shape.data / slowest

    def measured_speed_up(self, tangent: int) -> float:
        """The same by the measured step, in which tangents may share what a step takes: on a GPU its launches."""
        plan = make_plan(self.plan.starts, self.plan.horizon, tangent)
        return predicted_seconds(self.plan, self.measured) / predicted_seconds(plan, self.measured)


def predicted_seconds(plan: Plan, measured: StepMeasurement) -> float:
    """The time of an outer step by `plan`: that of the rank for which all others wait."""
    return max(rank_seconds(plan, measured, rank) for rank in range(len(plan.owned)))


def rank_seconds(plan: Plan, measured: StepMeasurement, rank: int) -> float:
    """The time of an outer step on `rank`: each step has the tangents that have begun."""
    return sum(steps * measured.seconds(live) for live, steps in plan.live_steps(rank).items())


def cost_report(
    problem: Problem, settings: OuterSettings, shape: MeshShape, estimator: str = "forward", directions: int = 0
) -> CostReport:
    """Plans the longest outer step for `shape`, and measures one inner step on this device, without training."""
    horizon = max(settings.horizons)
    plan = make_plan(problem.space.starts(horizon), horizon, shape.tangent)
    chunks = chunks_of(problem)
    measured = measure_step(problem, shape.data, max(map(len, plan.owned)))
    network = problem.network(0)
    weights = network.initial_weights
    state = tree_flatten(initial_state(problem, network).optimizer)[0]
    tensors = [weights, *state]

    def cost_of(place: int) -> RankCost:
        elements = plan.owned[place]
        beyond = max(0, len(elements) - measured.tangents)  # whose sums over micro-batches were not measured
        summed = beyond * _bytes([weights], shape.data) if problem.accumulate > 1 else 0
        return RankCost(
            ranks=_ranks_at(place, shape),
            elements=elements,
            plain_steps=plan.cost(place, chunks) / shape.data,
            memory=Memory(
                weights=_bytes([weights]),
                state=_bytes(state, shape.data),
                tangents=_bytes(tensors, shape.data) * len(elements),
                step=measured.rank_peak_bytes + summed,
            ),
            step_traffic=_traffic(_bytes([weights]), len(elements), shape.data),
            seconds=rank_seconds(plan, measured, place),
        )

    return CostReport(
        weights=network.layout.size,
        shape=shape,
        horizons=settings.horizons,
        plan=plan,
        ranks=tuple(map(cost_of, range(shape.tangent))),
        measured=measured,
        one_rank_plain_steps=make_plan(plan.starts, horizon, 1).cost(0, chunks),
        reverse=_reverse_cost(problem, weights, state, horizon, shape, measured),
        keeps_every_state=problem.keeps_every_state(horizon),
        estimator=estimator,
        directions=directions,
        chunks=chunks,
    )


def _reverse_cost(
    problem: Problem,
    weights: Tensor,
    state: Sequence[Tensor],
    horizon: int,
    shape: MeshShape,
    measured: StepMeasurement,
) -> RankCost:
    """The cost of reverse mode, which shares out work along the `data` axis only; every rank has the whole state."""
    states, steps = kept_states(problem, horizon), reverse_cost(problem, horizon)
    sums = 3 if problem.keeps_every_state(horizon) else 4  # gradients (sweep, replay, pull-back) and the adjoint
    peak = measured.peak_bytes  # a pull-back goes through the graph twice, like one tangent's product
    return RankCost(
        ranks=tuple(range(shape.replica * shape.tangent * shape.data)),
        elements=(),
        plain_steps=steps / shape.data,
        memory=Memory(_bytes([weights]), _bytes(state), states * _bytes([weights, *state]), peak),
        step_traffic=round(2 * sums * _bytes([weights]) * (shape.data - 1) / shape.data),
        seconds=steps * measured.plain_seconds,
    )


def _ranks_at(place: int, shape: MeshShape) -> tuple[int, ...]:
    """The ranks at one place of the `tangent` axis: the data ranks of every replica."""
    return tuple(
        (replica * shape.tangent + place) * shape.data + part
        for replica in range(shape.replica)
        for part in range(shape.data)
    )


def _bytes(tensors: Sequence[Tensor], parts: int = 1) -> int:
    """Bytes of `tensors`, or of the largest of `parts` parts of each. Single numbers are whole on every rank."""
    return sum((-(-tensor.numel() // parts) if tensor.dim() else 1) * tensor.element_size() for tensor in tensors)


def _traffic(weight_bytes: int, tangents: int, parts: int) -> int:
    """The least number of bytes that one data rank sends in a step: the gradient and all products are reduced, the
    weights and all tangents are gathered. Without a `data` axis nothing crosses the network."""
    return round(2 * (1 + tangents) * weight_bytes * (parts - 1) / parts)
