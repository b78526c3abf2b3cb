"""Who owns which tangent: a pure function, the same on every rank.

A tangent that begins at step s costs T − s tangent steps over a horizon of T, and nothing before. Contiguous ownership
would leave the ranks of late buckets idle, so tangents are dealt out by cost, the longest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PLAIN_STEP_COST = 1.0
TANGENT_STEP_COST = 2.0
"""In plain training steps: an exact Hessian-vector product needs two products for each one of a plain step."""


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

    def cost(self, rank: int) -> float:
        """Cost of one outer step on `rank`, in plain training steps."""
        return self.horizon * PLAIN_STEP_COST + self.load(rank) * TANGENT_STEP_COST

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
