"""The choice between the two exact estimators, forward and reverse mode, by cost and memory.

They give the same hypergradients but for rounding. Forward mode costs 1 + 2k plain steps with k live tangents on a
rank, compiled more (see `step_cost`), and spreads them over the `tangent` axis; reverse mode costs 4 or 5 whatever K
is, on every rank of that axis alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fds_dist.common.words import bytes_text
from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner.plan import REVERSE_COST, chunks_of, kept_states, make_plan, reverse_cost
from fds_dist.inner.problem import Problem


@dataclass(frozen=True)
class Way:
    """What one estimator takes on the rank for which all others wait."""

    steps: float
    """Plain steps of the whole batch over all outer steps."""
    held: int
    """Bytes of tangents or of kept states, in the longest outer step."""


@dataclass(frozen=True)
class Choice:
    """The estimator that is taken, and a sentence that says why."""

    estimator: str
    reason: str


def forward_way(problem: Problem, horizons: Sequence[int], shape: MeshShape) -> Way:
    """Forward mode over these `horizons`, its tangents without pruning, its steps compiled where they will be."""
    steps, held, chunks = 0.0, 0, chunks_of(problem)
    for horizon in set(horizons):
        plan = make_plan(problem.space.starts(horizon), horizon, shape.tangent)
        slowest = max(plan.cost(rank, chunks) for rank in range(shape.tangent))
        steps += horizons.count(horizon) * slowest / shape.data
        held = max(map(len, plan.owned)) * -(-problem.state_bytes // shape.data)
    return Way(steps, held)


def reverse_way(problem: Problem, horizons: Sequence[int], shape: MeshShape) -> Way:
    """Reverse mode over these `horizons`; every rank has the whole state."""
    steps = sum(reverse_cost(problem, horizon) for horizon in horizons) / shape.data
    return Way(steps, kept_states(problem, max(horizons)) * problem.state_bytes)


def may_pay(problem: Problem, horizons: Sequence[int], shape: MeshShape, free: int) -> bool:
    """Whether reverse mode may be the better one: at its cheapest, or where tangents do not fit into `free` bytes."""
    forward = forward_way(problem, horizons, shape)
    return REVERSE_COST * sum(horizons) / shape.data < forward.steps or forward.held > free


def choose(forward: Way, reverse: Way, steps: int, free: int, obstacle: str = "") -> Choice:
    """The one that fits into memory, of two the one with fewer plain steps; forward mode in doubt.

    Args:
        steps: inner steps over all outer steps.
        free: bytes of free memory on the rank that has least.
        obstacle: why reverse mode is out of the question; "" where nothing is.
    """
    if obstacle:
        return Choice("forward", obstacle)
    for name, way, other in (("forward", forward, reverse), ("reverse", reverse, forward)):
        if way.held <= free < other.held:
            held = "kept states" if name == "forward" else "tangents"
            return Choice(name, f"the other's {held} ({bytes_text(other.held)}) exceed free memory, {bytes_text(free)}")
    name, way, other = ("reverse", reverse, forward) if reverse.steps < forward.steps else ("forward", forward, reverse)
    costs = f"an inner step costs {way.steps / steps:.1f} plain steps on the slowest rank, {other.steps / steps:.1f} by"
    return Choice(name, f"{costs} {'forward' if name == 'reverse' else 'reverse'} mode")
