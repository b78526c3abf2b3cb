"""Who owns which tangent, and what an inner run costs in plain training steps: the one place where costs are charged.

A tangent that begins at step s costs T − s tangent steps over a horizon of T, and nothing before. Contiguous ownership
would leave the ranks of late buckets idle, so tangents are dealt out by cost, the longest first.

A plain step (forward, backward, update) costs 1, and a black box's trial therefore its horizon. The charge of an
estimator is for the work of all ranks together, each piece once: it does not depend on how many ranks share it.
Validation is free for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isqrt
from typing import NamedTuple

from fds_dist.inner.problem import Problem
from fds_dist.schedule.shapes import stretches

PLAIN_STEP_COST = 1.0
TANGENT_STEP_COST = 2.0
"""In plain training steps: an exact Hessian-vector product needs two products for each one of a plain step."""


class Chunks(NamedTuple):
    """The calls of a compiled step."""

    size: int
    """C, the most tangents of a call."""
    filled: bool
    """Whether every call has C tangents, zeros among them."""


def chunks_of(problem: Problem) -> Chunks | None:
    """Those of the problem's steps; None where these are eager."""
    options = problem.tangents
    return None if options.compile == "off" else Chunks(options.compiled_chunk, problem.device.type != "cpu")


def step_cost(live: int, chunks: Chunks | None = None) -> float:
    """Plain steps that a step with k live tangents costs.

    Args:
        chunks: None: the step is eager, 1 + 2k. A compiled one takes the plain step in each of its ⌈k/C⌉ calls, one
            at least: ⌈k/C⌉ + 2k, and with filled ones ⌈k/C⌉·(1 + 2C). Smaller calls, where they are faster, are not
            charged.
    """
    if chunks is None:
        return PLAIN_STEP_COST + TANGENT_STEP_COST * live
    calls = max(1, ceil(live / chunks.size))
    tangents = calls * chunks.size if chunks.filled else max(1, live)
    return PLAIN_STEP_COST * calls + TANGENT_STEP_COST * tangents


@dataclass(frozen=True)
class Plan:
    """Ownership of K tangents over the ranks of the `tangent` axis."""

    horizon: int
    starts: tuple[int, ...]
    """[K] first step of each tangent."""
    owned: tuple[tuple[int, ...], ...]
    """Per rank the tangents it owns, in order of their starts, so that the live ones are always a prefix."""

    def load(self, rank: int) -> int:
        """Tangent steps that `rank` takes over the horizon."""
        return sum(self.horizon - self.starts[index] for index in self.owned[rank])

    def live_steps(self, rank: int) -> dict[int, int]:
        """Number of live tangents → on how many steps of the horizon `rank` has so many."""
        begun = [0, *sorted(self.starts[index] for index in self.owned[rank]), self.horizon]
        return {live: stop - start for live, (start, stop) in enumerate(pairwise(begun)) if stop > start}

    def cost(self, rank: int, chunks: Chunks | None = None) -> float:
        """Cost of one outer step on `rank`, in plain training steps; see `step_cost`."""
        return sum(steps * step_cost(live, chunks) for live, steps in self.live_steps(rank).items())

    def live(self, step: int) -> int:
        """Tangents over all ranks that have begun at `step`."""
        return sum(start <= step for start in self.starts)


def make_plan(starts: Sequence[int], horizon: int, ranks: int) -> Plan:
    """Balances tangents over ranks by longest processing time first; ties keep memory (tangents per rank) even.

    The costliest rank is within 4/3 of the best possible (Graham, 1969); for the bucket counts of the paper it is best.

    Raises:
        ValueError: no ranks, or a start outside the horizon.
    """
    if ranks < 1:
        raise ValueError(f"{ranks} ranks; at least 1 is needed")
    if any(not 0 <= start < horizon for start in starts):
        raise ValueError(f"tangents must begin within the horizon of {horizon} steps: {list(starts)}")
    owned: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(starts)), key=lambda index: (starts[index], index)):
        rank = min(range(ranks), key=lambda rank: (loads[rank], len(owned[rank]), rank))
        owned[rank].append(index)
        loads[rank] += horizon - starts[index]
    return Plan(horizon, tuple(starts), tuple(map(tuple, owned)))


REVERSE_COST = 4.0
"""Plain steps per step of a reverse sweep, whatever K is: one forward, and a pull-back that takes the step once more
(one) and goes back through it (two)."""
REPLAY_COST = 1.0
"""What comes on top where only some states are kept, and the others are computed a second time."""


def stretch(horizon: int) -> int:
    """Steps whose batches a reverse sweep has at once, and from one kept state to the next where not all are: ⌈√T⌉."""
    return max(1, isqrt(horizon - 1) + 1)


def kept_states(problem: Problem, horizon: int) -> int:
    """The most states that a reverse sweep keeps at once: all, or one per stretch and those of one stretch."""
    spacing = stretch(horizon)
    return horizon if problem.keeps_every_state(horizon) else -(-horizon // spacing) + spacing


def tangent_steps(problem: Problem, horizon: int) -> int:
    """Tangent updates over a horizon, all elements of λ together: those that are live and not pruned.

    From the start of its bucket b to that of the next, a hyperparameter has size · (b + 1) live tangents: those of
    buckets 0 to b.
    """
    pruning = problem.tangents.pruning
    total = 0
    for owner in problem.space.learned:
        for bucket, stretch in enumerate(stretches(owner.shaped, horizon)):
            steps = len(stretch)
            kept = sum(pruning.keeps(offset, steps) for offset in range(steps)) if pruning.ratio else steps
            total += kept * (bucket + 1) * owner.size
    return total


def forward_cost(problem: Problem, horizon: int) -> float:
    """1 + 2k per step with k live tangents: an exact Hessian-vector product costs two plain steps."""
    return PLAIN_STEP_COST * horizon + TANGENT_STEP_COST * tangent_steps(problem, horizon)


def reverse_cost(problem: Problem, horizon: int) -> float:
    """The same for every number of hyperparameters; less where the state of every step is kept."""
    return horizon * (REVERSE_COST if problem.keeps_every_state(horizon) else REVERSE_COST + REPLAY_COST)


def greedy_cost(problem: Problem, horizon: int, discount: float) -> float:
    """Per step a plain step and a validation gradient, charged as another; and where a product is needed, that is with
    memory or with hyperparameters of the loss, two plain steps per number of each bucket that is read."""
    needs_products = discount > 0 or problem.loss_hyperparameters
    windows = sum(
        owner.size * len(owner.shaped.window(bucket, horizon))
        for owner in problem.space.learned
        for bucket in range(owner.buckets)
    )
    return horizon * 2 * PLAIN_STEP_COST + (TANGENT_STEP_COST * windows if needs_products else 0.0)


def directions_cost(problem: Problem, horizon: int, count: int) -> float:
    """1 + 2R per step, for R directions: at most one per element."""
    return horizon * (PLAIN_STEP_COST + TANGENT_STEP_COST * min(count, problem.space.size))


def estimator_cost(name: str, problem: Problem, horizon: int, discount: float = 0.0, count: int = 0) -> float:
    """One outer step with the estimator `name` over `horizon` inner steps, in plain training steps.

    Args:
        discount: what the estimator `greedy` remembers from step to step.
        count: directions of the estimator `random_directions`.
    """
    if name == "random_directions":
        return directions_cost(problem, horizon, count)
    if name == "greedy":
        return greedy_cost(problem, horizon, discount)
    return {"forward": forward_cost, "reverse": reverse_cost}[name](problem, horizon)
