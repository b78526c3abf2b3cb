"""The shape of a schedule: which buckets a step reads, and with what weights. Needs no torch.

    value at step t = Σ_b weight[b, t] · value of bucket b,    weight [buckets, T] ≥ 0,    Σ_b weight[b, t] = 1

The weights are the derivatives of a step's value by the buckets' values. A bucket's tangent is exactly zero before the
first step that reads it.

Shapes: T = steps of the horizon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar, Protocol

from fds_dist.schedule.buckets import Reading, Segment, bucket_of, bucket_window

DEFAULT = "constant"
"""The name of the shape of schedules that do not name one."""


class Shape(Protocol):
    """How `buckets` values become one value for each step."""

    fewest: ClassVar[int]
    """Of fewer buckets no such shape can be made."""

    @property
    def buckets(self) -> int:
        """How many values there are."""
        ...

    def readings(self, step: int, horizon: int) -> tuple[Reading, ...]:
        """The buckets that `step` (0 ≤ step < horizon) reads, in their order, and their weights, all above 0."""
        ...

    def window(self, bucket: int, horizon: int) -> range:
        """The steps that read `bucket`; windows start in the order of the buckets. Needs horizon ≥ buckets."""
        ...

    def place(self, bucket: int) -> tuple[Fraction, Fraction]:
        """Where in the relative horizon [0, 1] a curve says what the bucket's value is: by its mean from the first
        number to the second, or where they are the same by its value there."""
        ...


@dataclass(frozen=True)
class Constant:
    """Contiguous steps share a value: step t reads bucket ⌊n·t/T⌋ (FDS, arXiv 2007.07869, section 4)."""

    fewest: ClassVar[int] = 1
    buckets: int

    def readings(self, step: int, horizon: int) -> tuple[Reading, ...]:
        """See `Shape`."""
        return (Reading(bucket_of(step, self.buckets, horizon)),)

    def window(self, bucket: int, horizon: int) -> range:
        """See `Shape`."""
        return bucket_window(bucket, self.buckets, horizon)

    def place(self, bucket: int) -> tuple[Fraction, Fraction]:
        """See `Shape`."""
        return Fraction(bucket, self.buckets), Fraction(bucket + 1, self.buckets)


@dataclass(frozen=True)
class Linear:
    """Straight lines between n knots, of which knot i stands at step i·(T−1)/(n−1): the first at the first step, the
    last at the last."""

    fewest: ClassVar[int] = 2
    buckets: int

    def readings(self, step: int, horizon: int) -> tuple[Reading, ...]:
        """See `Shape`."""
        length = max(1, horizon - 1)  # a single step reads the first knot
        left, rest = divmod(step * (self.buckets - 1), length)
        if not rest:
            return (Reading(left),)
        return Reading(left, (length - rest) / length), Reading(left + 1, rest / length)

    def window(self, bucket: int, horizon: int) -> range:
        """See `Shape`: the steps between the knot before `bucket` and the knot after it."""
        gaps = self.buckets - 1
        start = 0 if bucket == 0 else (bucket - 1) * (horizon - 1) // gaps + 1
        stop = horizon if bucket == gaps else -(-(bucket + 1) * (horizon - 1) // gaps)
        return range(start, stop)

    def place(self, bucket: int) -> tuple[Fraction, Fraction]:
        """See `Shape`."""
        point = Fraction(bucket, self.buckets - 1)
        return point, point


SHAPES: dict[str, type[Constant] | type[Linear]] = {"constant": Constant, "linear": Linear}
"""By name in the config, `shape`."""


def shape_of(name: str, buckets: int) -> Shape:
    """The shape with as many buckets; constant where they are fewer than it needs."""
    shape = SHAPES[name]
    return shape(buckets) if buckets >= shape.fewest else Constant(buckets)


def weighted(readings: Sequence[Reading], numbers: Sequence[float]) -> float:
    """The number at a step, from the `numbers` of the buckets that it reads; never beyond them."""
    if len(numbers) == 1:
        return numbers[0]
    mean = sum(reading.weight * number for reading, number in zip(readings, numbers, strict=True))
    return min(max(mean, min(numbers)), max(numbers))  # but for rounding, it is between them by itself


def stretches(shape: Shape, horizon: int) -> list[range]:
    """[buckets] The steps from the first that reads a bucket to the first that reads the next: on those of bucket b,
    the buckets 0 to b have tangents that are not zero."""
    starts = [shape.window(bucket, horizon).start for bucket in range(shape.buckets)]
    return [range(*pair) for pair in pairwise([*starts, horizon])]


def segments(shapes: Mapping[str, Shape], horizon: int) -> Iterator[Segment]:
    """Cuts the horizon wherever a hyperparameter reads other buckets. `shapes`: name → shape, with its buckets."""
    windows = [shape.window(bucket, horizon) for shape in shapes.values() for bucket in range(shape.buckets)]
    cuts = {edge for window in windows for edge in (window.start, window.stop)}
    row = 0
    for start, stop in pairwise(sorted(cuts | {0, horizon})):
        at_start, at_end = (
            {name: shape.readings(step, horizon) for name, shape in shapes.items()} for step in (start, stop - 1)
        )
        segment = Segment(start, stop, at_start, row, at_start != at_end)
        yield segment
        row += len(segment.steps_read)
