"""How a horizon is divided into buckets, and what a step reads of them. Needs no torch.

Hyperparameter `i` has `n_i` buckets over a horizon of `T` steps; with the shape `constant`, step `t` reads bucket
`⌊n_i·t/T⌋` (FDS, arXiv 2007.07869, section 4: contiguous steps share their hyperparameters).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


def bucket_of(step: int, buckets: int, horizon: int) -> int:
    """The bucket that `step` (0 ≤ step < horizon) reads."""
    return buckets * step // horizon


def bucket_start(bucket: int, buckets: int, horizon: int) -> int:
    """The first step that reads `bucket`: the smallest t with ⌊buckets·t/horizon⌋ ≥ bucket."""
    return -(-bucket * horizon // buckets)


def bucket_window(bucket: int, buckets: int, horizon: int) -> range:
    """The steps that read `bucket`. The lengths of windows differ by at most one step."""
    return range(bucket_start(bucket, buckets, horizon), bucket_start(bucket + 1, buckets, horizon))


class Reading(NamedTuple):
    """A bucket that a step reads: the value at the step is the sum of weight · value over its readings, and `weight` is
    the derivative of the step's value by the bucket's."""

    bucket: int
    weight: float = 1.0


@dataclass(frozen=True)
class Segment:
    """Contiguous steps `[start, stop)` on which every hyperparameter reads the same buckets."""

    start: int
    stop: int
    readings: dict[str, tuple[Reading, ...]]
    """The buckets in use, by hyperparameter, with their weights at the first step."""
    first_row: int = 0
    """How many rows the segments before it have: numbers that change with the steps are kept in one row per step of a
    segment that varies, and else in one row per segment."""
    varies: bool = False
    """Whether the weights change from step to step."""

    @property
    def steps_read(self) -> range:
        """The step of each of its rows."""
        return range(self.start, self.stop if self.varies else self.start + 1)

    def row(self, step: int) -> int:
        """The row of one of its steps."""
        return self.first_row + (step - self.start if self.varies else 0)
