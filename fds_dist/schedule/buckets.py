"""How a horizon is divided into buckets. Needs no torch.

Hyperparameter `i` has `n_i` buckets over a horizon of `T` steps; step `t` reads bucket `⌊n_i·t/T⌋` (FDS, arXiv
2007.07869, section 4: contiguous steps share their hyperparameters).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
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
    """Contiguous steps `[start, stop)` on which no hyperparameter changes."""

    start: int
    stop: int
    readings: dict[str, tuple[Reading, ...]]
    """The buckets in use, by hyperparameter."""


def segments(buckets: Mapping[str, int], horizon: int) -> Iterator[Segment]:
    """Cuts the horizon wherever a hyperparameter changes its bucket. `buckets`: name → number of buckets."""
    cuts = {bucket_start(bucket, count, horizon) for count in buckets.values() for bucket in range(count)}
    edges = sorted(cuts | {0, horizon})
    for start, stop in pairwise(edges):
        readings = {name: (Reading(bucket_of(start, count, horizon)),) for name, count in buckets.items()}
        yield Segment(start, stop, readings)
