"""The hyperparameter space: named, bucketed hyperparameters and the flat vector λ that the outer optimizer moves.

Shapes: H = number of hyperparameters in use at a step (learned and fixed), K = all learned numbers = Σ buckets.

λ lists the learned hyperparameters in their order, each with its buckets in order. λ is a list of Python floats
(float64): K is small, and every rank must take the same outer step to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from fds_dist.common.domain import BELOW_ONE, UNBOUNDED, UNIT_INTERVAL
from fds_dist.schedule.buckets import bucket_start
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule

LARGEST_LOGARITHM = 700.0
"""The bound of a coordinate: exp of a slightly larger one overflows, and exp of one slightly below −700 is 0."""


@dataclass(frozen=True)
class Hyperparameter:
    """A learned hyperparameter, or its copy for one parameter group; `bounds` are inclusive."""

    name: str
    init: float
    step: float
    buckets: int = 1
    bounds: tuple[float, float] = UNBOUNDED
    scale: str = "linear"

    @property
    def base(self) -> str:
        """The name without the parameter group."""
        return base_of(self.name)

    def clamp(self, value: float) -> float:
        """`value`, or the bound that it would exceed."""
        low, high = self.bounds
        return min(max(value, low), high)

    def to_scale(self, value: float) -> float:
        """The coordinate that the outer optimizer moves: x, log(x), or log(1 − x) for hyperparameters in [0, 1)."""
        if self.scale == "linear":
            return value
        return math.log1p(-value) if self.base in UNIT_INTERVAL else math.log(value)

    def from_scale(self, coordinate: float) -> float:
        """The inverse of `to_scale`. On the log scale, `to_scale` of the result is always finite."""
        if self.scale == "linear":
            return coordinate
        coordinate = max(-LARGEST_LOGARITHM, min(coordinate, LARGEST_LOGARITHM))
        return min(-math.expm1(coordinate), BELOW_ONE) if self.base in UNIT_INTERVAL else math.exp(coordinate)

    def scale_slope(self, value: float) -> float:
        """d value / d coordinate: the factor from a derivative by the value to one by the coordinate."""
        if self.scale == "linear":
            return 1.0
        return value - 1.0 if self.base in UNIT_INTERVAL else value


@dataclass(frozen=True)
class HyperparameterSpace:
    """All hyperparameters of a run: the learned ones, which form λ, and the fixed ones."""

    learned: tuple[Hyperparameter, ...]
    fixed: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """K, the length of λ."""
        return sum(hyperparameter.buckets for hyperparameter in self.learned)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The H names that a step reads: learned first, then fixed."""
        return tuple(hyperparameter.name for hyperparameter in self.learned) + tuple(self.fixed)

    @property
    def bucket_counts(self) -> dict[str, int]:
        """Learned name → number of buckets."""
        return {hyperparameter.name: hyperparameter.buckets for hyperparameter in self.learned}

    @cached_property
    def elements(self) -> tuple[tuple[Hyperparameter, int], ...]:
        """The hyperparameter and the bucket of each of the K elements of λ."""
        return tuple((owner, bucket) for owner in self.learned for bucket in range(owner.buckets))

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Learned name → position of its first bucket in λ."""
        ends = accumulate((owner.buckets for owner in self.learned), initial=0)
        return {owner.name: first for owner, first in zip(self.learned, ends, strict=False)}

    def initial(self) -> list[float]:
        """λ before the first outer step."""
        return [owner.init for owner, _ in self.elements]

    def starts(self, horizon: int) -> list[int]:
        """The first step that reads each element of λ; before that step its tangent is exactly zero."""
        return [bucket_start(bucket, owner.buckets, horizon) for owner, bucket in self.elements]

    def pack(self, named: Mapping[str, Sequence[float]]) -> list[float]:
        """λ from named buckets.

        Raises:
            ValueError: the names or the numbers of buckets differ from this space's.
        """
        counts = {name: len(values) for name, values in named.items()}
        if counts != self.bucket_counts:
            raise ValueError(f"buckets {counts} do not fit this space, which has {self.bucket_counts}")
        return [named[owner.name][bucket] for owner, bucket in self.elements]

    def unpack(self, flat: Iterable[float]) -> dict[str, list[float]]:
        """Named buckets from λ, or from other K numbers in the order of λ."""
        named: dict[str, list[float]] = {owner.name: [] for owner in self.learned}
        for (owner, _), value in zip(self.elements, flat, strict=True):
            named[owner.name].append(value)
        return named

    def schedule(self, flat: Sequence[float], horizon: int, optimizer: Mapping[str, object] | None = None) -> Schedule:
        """λ as a schedule over `horizon` steps; `optimizer` becomes `Schedule.optimizer`."""
        values = {name: tuple(row) for name, row in self.unpack(flat).items()}
        return Schedule(horizon, values, dict(self.fixed), dict(optimizer or {}))
