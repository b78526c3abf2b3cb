"""How the H numbers of a step move along each tangent: dh.

    dh[r] at step t = Σ_m weight[t, m] ∘ moved[r, m],    moved[r, m] = what tangent r moves of the bucket that is read

Shapes: H = numbers in use at a step, K = learned numbers, R = tangents, M = buckets that a number of h reads on a
segment, S = rows of the segment: one per step where the weights change, else one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fds_dist.common.transfer import to_device
from fds_dist.inner.problem import Problem
from fds_dist.schedule.buckets import Segment
from fds_dist.schedule.space import HyperparameterSpace

Along = Callable[[Tensor], Tensor]
"""Positions in λ [M, H], −1 where there is none → how far each tangent moves what stands there [R, M, H], on the CPU or
the device."""


def along_elements(elements: Sequence[int]) -> Along:
    """Tangents by the `elements` [R] of λ themselves."""
    numbers = torch.tensor(elements, dtype=torch.long)[:, None, None]
    return lambda places: places == numbers


def along_mixtures(mixture: Tensor) -> Along:
    """Tangents by other directions of λ: the rows of `mixture` [R, K]."""
    padded = torch.cat([mixture, mixture.new_zeros(len(mixture), 1)], dim=1)  # for −1
    return lambda places: padded[:, to_device(places, mixture.device)]


class Directions:
    """dh [R, H] at the steps of a segment. What it needs is on the device from the beginning: a step copies nothing."""

    def __init__(self, problem: Problem, segment: Segment, horizon: int, along: Along) -> None:
        space, device = problem.space, problem.device
        self._segment = segment
        self._moved = to_device(along(places_read(space, segment)), device, problem.dtype)
        self._weights = to_device(weights_read(space, segment, horizon), device, problem.dtype)
        self._constant = None if segment.varies else self._at(0)

    def at(self, step: int) -> Tensor:
        """dh [R, H] at `step`."""
        return self._at(step - self._segment.start) if self._constant is None else self._constant

    def _at(self, row: int) -> Tensor:
        return (self._moved * self._weights[row]).sum(1)


def places_read(space: HyperparameterSpace, segment: Segment) -> Tensor:
    """[M, H] The positions in λ that each number of h reads on `segment`; −1 where it reads fewer than M."""
    most = max(map(len, segment.readings.values()), default=1)
    places = torch.full((most, sum(space.sizes.values())), -1)
    for owner in space.learned:
        for row, reading in enumerate(segment.readings[owner.name]):
            part = space.part(owner, reading.bucket)
            places[row, space.columns[owner.name]] = torch.arange(part.start, part.stop)
    return places


def weights_read(space: HyperparameterSpace, segment: Segment, horizon: int) -> Tensor:
    """[S, M, H] The weights with which the numbers of h read those positions, in float64."""
    most = max(map(len, segment.readings.values()), default=1)
    rows = []
    for step in segment.steps_read:
        readings = space.readings(step, horizon)
        weights = [[reading.weight for reading in readings.get(name, ())] for name in space.names]
        rows.append([[*row, *[0.0] * (most - len(row))] for row in weights])
    shape = len(rows), len(space.names), most  # said, as there may be no hyperparameters
    by_name = torch.tensor(rows, dtype=torch.float64).reshape(shape).transpose(1, 2)  # [S, M, hyperparameters]
    counts = [*space.sizes.values()]
    return by_name.repeat_interleave(torch.tensor(counts, dtype=torch.long), dim=2, output_size=sum(counts))
