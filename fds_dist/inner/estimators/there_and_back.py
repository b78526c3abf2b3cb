"""Where a reverse sweep stands on its way there and back, and what a checkpoint of it holds.

Shapes: D = weights, K = learned numbers, T = the horizon. Every rank has the whole state, and all ranks have the same
numbers, but for running statistics of its part of a batch, and for the adjoints of live buffers, whose parts add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.checkpoint_files import Target, buffer_targets, empty_like, state_targets
from fds_dist.inner.plan import stretch
from fds_dist.inner.run import InnerState


@dataclass
class Place:
    """Where a sweep over `horizon` steps stands."""

    horizon: int
    """T."""
    state: InnerState
    """After the last step on the way there."""
    states: dict[int, InnerState]
    """Step → the state before it. A sweep can go on with every ⌈√T⌉-th, and a checkpoint has no others."""
    adjoints: list[Tensor]
    """Of the state before step `left`, once the way back has begun."""
    total: Tensor
    """[K] what the steps of the way back have added to the hypergradients."""
    left: int
    """Steps that are left of the way back: T on the way there."""
    live: int
    """How many of `adjoints`, the last ones, are of live buffers."""

    @property
    def step(self) -> int:
        """Steps that were taken there and back, of 2T."""
        return self.state.step + self.horizon - self.left

    def emptied(self, step: int) -> Place:
        """The place after `step` steps there and back, with tensors to be filled."""
        there, left = min(step, self.horizon), min(2 * self.horizon - step, self.horizon)
        states = {at: empty_like(self.state, at) for at in _spaced(self.horizon, min(there, left))}
        adjoints = [torch.empty_like(adjoint) for adjoint in self.adjoints]
        total = torch.zeros_like(self.total)
        return Place(self.horizon, empty_like(self.state, there), states, adjoints, total, left, self.live)

    def targets(self, ranks: Ranks) -> tuple[list[Target], list[Target]]:
        """The tensors of a checkpoint: those that all ranks have alike, and those that differ along the `data` axis."""
        alike, unlike = list[Target](), list[Target]()
        spaced = _spaced(self.horizon, min(self.state.step, self.left))
        for state in (*map(self.states.__getitem__, spaced), self.state):
            name = f"states.{state.step}."
            alike += state_targets(replace(state, buffers={}), name, whole=True)
            unlike += buffer_targets(state, name)
        if self.left == self.horizon:
            return alike, unlike
        alike.append(Target(self.total, "total", whole=True))
        part = f"part-{ranks.data.rank}-of-{ranks.data.size}"
        for index, adjoint in enumerate(self.adjoints):
            is_part = index >= len(self.adjoints) - self.live
            name = f"adjoints.{index}.{part}" if is_part else f"adjoints.{index}"
            (unlike if is_part else alike).append(Target(adjoint, name, whole=True))
        return alike, unlike

    def to_write(self, ranks: Ranks) -> Mapping[str, Tensor]:
        """What this rank writes, by name: one rank writes what all have alike."""
        alike, unlike = self.targets(ranks) if ranks.tangent_rank == 0 else ([], [])
        written: Sequence[Target] = [*alike, *unlike] if ranks.data.rank == 0 else unlike
        return {target.name: target.tensor for target in written}


def _spaced(horizon: int, stop: int) -> range:
    """The steps below `stop` whose states a checkpoint has."""
    return range(0, stop, stretch(horizon))
