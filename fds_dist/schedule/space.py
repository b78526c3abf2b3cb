"""The hyperparameter space: named, bucketed hyperparameters and the flat vector λ that the outer optimizer moves.

Shapes: H = numbers in use at a step = Σ size of the learned hyperparameters + the fixed ones, K = all learned numbers
= Σ buckets · size.

λ lists the learned hyperparameters in their order, each with its buckets in order, each bucket with its `size`
numbers: an element of λ is (hyperparameter, bucket, entry). λ is a list of Python floats (float64): all ranks must take
the same outer step to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from fds_dist.common.domain import BELOW_ONE, UNBOUNDED, UNIT_INTERVAL
from fds_dist.common.values import Row, Value, flat, mapped, nested, numbers_of, size_of
from fds_dist.schedule.buckets import Reading, Segment
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import DEFAULT, Shape, segments, shape_of, weighted

LARGEST_LOGARITHM = 700.0
"""The bound of a coordinate: exp of a slightly larger one overflows, and exp of one slightly below −700 is 0."""


@dataclass(frozen=True)
class Hyperparameter:
    """A learned hyperparameter, or its copy for one parameter group; `bounds` are inclusive."""

    name: str
    init: Value
    """One number for all, or `buckets` numbers; with a `size` the `size` numbers of each bucket."""
    step: float
    buckets: int = 1
    bounds: tuple[float, float] = UNBOUNDED
    scale: str = "linear"
    size: int = 1
    """Numbers per bucket."""
    shape: str = field(default=DEFAULT, repr=False)  # older comparisons name their search space by the repr
    """Of `SHAPES`; a single bucket is constant all the same."""

    @property
    def shaped(self) -> Shape:
        """Its shape, with its buckets."""
        return shape_of(self.shape, self.buckets)

    @property
    def base(self) -> str:
        """The name without the parameter group."""
        return base_of(self.name)

    @property
    def count(self) -> int:
        """How many elements of λ are this hyperparameter's."""
        return self.buckets * self.size

    @property
    def start(self) -> tuple[float, ...]:
        """[buckets · size] The elements of λ before the first outer step."""
        numbers = tuple(numbers_of(self.init))
        return numbers * (self.count // len(numbers))

    @property
    def domain(self) -> tuple[float, float]:
        """The `bounds`, and 0 as the least on the log scale."""
        low, high = self.bounds
        return (low if self.scale == "linear" else max(low, 0.0)), high

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


class Slot(NamedTuple):
    """Where an element of λ stands."""

    owner: Hyperparameter
    bucket: int
    entry: int
    """Within the numbers of the bucket; 0 where there is one."""

    @property
    def number(self) -> int:
        """Its position among the elements of its hyperparameter: the bucket, where each has one number."""
        return self.bucket * self.owner.size + self.entry

    def __str__(self) -> str:
        index = f"[{self.entry}]" if self.owner.size > 1 else ""
        return f"{self.owner.name}[{self.bucket}]{index}"


@dataclass(frozen=True)
class HyperparameterSpace:
    """All hyperparameters of a run: the learned ones, which form λ, and the fixed ones."""

    learned: tuple[Hyperparameter, ...]
    fixed: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """K, the length of λ."""
        return sum(owner.count for owner in self.learned)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The hyperparameters that a step reads: learned first, then fixed."""
        return tuple(hyperparameter.name for hyperparameter in self.learned) + tuple(self.fixed)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Name → how many of the H numbers of a step are its own, in the order of `names`."""
        return {**{owner.name: owner.size for owner in self.learned}, **dict.fromkeys(self.fixed, 1)}

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Name → its places among the H numbers of a step."""
        ends = [*accumulate(self.sizes.values(), initial=0)]
        return {name: slice(*ends[place : place + 2]) for place, name in enumerate(self.sizes)}

    @property
    def bucket_counts(self) -> dict[str, int]:
        """Learned name → number of buckets."""
        return {hyperparameter.name: hyperparameter.buckets for hyperparameter in self.learned}

    @cached_property
    def elements(self) -> tuple[Slot, ...]:
        """The hyperparameter, the bucket and the entry within it of each of the K elements of λ."""
        return tuple(
            Slot(owner, bucket, entry)
            for owner in self.learned
            for bucket in range(owner.buckets)
            for entry in range(owner.size)
        )

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Learned name → position of its first element in λ."""
        ends = accumulate((owner.count for owner in self.learned), initial=0)
        return {owner.name: first for owner, first in zip(self.learned, ends, strict=False)}

    def part(self, owner: Hyperparameter, bucket: int) -> slice:
        """The elements of λ that are the `size` numbers of one bucket."""
        first = self.offsets[owner.name] + bucket * owner.size
        return slice(first, first + owner.size)

    def initial(self) -> list[float]:
        """λ before the first outer step."""
        return [number for owner in self.learned for number in owner.start]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Learned name → its shape, with its buckets."""
        return {owner.name: owner.shaped for owner in self.learned}

    def segments(self, horizon: int) -> Iterator[Segment]:
        """The stretches of the horizon on which every hyperparameter reads the same buckets."""
        return segments(self.shapes, horizon)

    @property
    def first_readings(self) -> dict[str, tuple[Reading, ...]]:
        """What the first step of any horizon reads, by learned name."""
        return self.readings(0, max(self.bucket_counts.values(), default=1))

    def readings(self, step: int, horizon: int) -> dict[str, tuple[Reading, ...]]:
        """What `step` reads, by learned name."""
        return {name: shape.readings(step, horizon) for name, shape in self.shapes.items()}

    def read(self, readings: Mapping[str, Sequence[Reading]], values: Sequence[float]) -> list[float]:
        """h [H], the numbers in use at a step with these `readings`, given λ = `values` [K]."""
        numbers: list[float] = []
        for owner in self.learned:
            buckets = readings[owner.name]
            parts = (values[self.part(owner, reading.bucket)] for reading in buckets)
            numbers += [weighted(buckets, entries) for entries in zip(*parts, strict=True)]
        return [*numbers, *self.fixed.values()]

    def starts(self, horizon: int) -> list[int]:
        """The first step that reads each element of λ; before that step its tangent is exactly zero."""
        return [self.shapes[owner.name].window(bucket, horizon).start for owner, bucket, _ in self.elements]

    def pack(self, named: Mapping[str, Row]) -> list[float]:
        """λ from named buckets.

        Raises:
            ValueError: the names or the numbers of buckets differ from this space's.
        """
        counts = {name: (len(row), size_of(row)) for name, row in named.items()}
        if counts != {owner.name: (owner.buckets, owner.size) for owner in self.learned}:
            buckets = {name: count if size == 1 else (count, size) for name, (count, size) in counts.items()}
            raise ValueError(f"buckets {buckets} do not fit this space, which has {self.bucket_counts}")
        return [number for owner in self.learned for number in flat(named[owner.name])]

    def rows(self, numbers: Iterable[float]) -> dict[str, list[float]]:
        """By name the elements of λ, or of other K numbers in the order of λ."""
        numbers = list(numbers)
        if len(numbers) != self.size:
            raise ValueError(f"{len(numbers)} numbers do not fit this space, which has {self.size}")
        return {
            owner.name: numbers[(first := self.offsets[owner.name]) : first + owner.count] for owner in self.learned
        }

    def unpack(self, numbers: Iterable[float]) -> dict[str, list[Value]]:
        """Named buckets from λ, or from other K numbers in the order of λ: a number for each, or a list of `size`."""
        rows = self.rows(numbers)
        return {owner.name: nested(rows[owner.name], owner.size) for owner in self.learned}

    def schedule(
        self, numbers: Sequence[float], horizon: int, optimizer: Mapping[str, object] | None = None
    ) -> Schedule:
        """λ as a schedule over `horizon` steps; `optimizer` becomes `Schedule.optimizer`."""
        values = {name: tuple(mapped(float, value) for value in row) for name, row in self.unpack(numbers).items()}
        shapes = {owner.name: owner.shape for owner in self.learned}
        return Schedule(horizon, values, dict(self.fixed), dict(optimizer or {}), shapes)
