"""Where a learned schedule begins: the values of its buckets from a curve, or from an earlier schedule. Needs no torch.

What a bucket stands for is a stretch of the relative horizon [0, 1] or a point of it: see `Shape.place`. Its value is
the mean over the stretch, or the value at the point, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import Constant, Shape


def mean_cosine(start: float, stop: float) -> float:
    """The mean of (1 + cos πx) / 2 for x from `start` to `stop`."""
    if start == stop:
        return (1 + math.cos(math.pi * start)) / 2
    return 0.5 + (math.sin(math.pi * stop) - math.sin(math.pi * start)) / (2 * math.pi * (stop - start))


def mean_line(start: float, stop: float) -> float:
    """The mean of 1 − x for x from `start` to `stop`."""
    return 1 - (start + stop) / 2


DECAYS: dict[str, Callable[[float, float], float]] = {"cosine": mean_cosine, "linear": mean_line}
"""The name of a decay from 1 at 0 to 0 at 1 → its mean over a stretch, and its value where the stretch is a point."""


def curve_values(decay: str, peak: float, floor: float, warmup: float, shape: Shape) -> list[float]:
    """A warm-up and a decay in the buckets of a shape; means by the curve's integral.

    The curve rises in a line from 0 to `peak` over the first `warmup` (0 ≤ warmup < 1) of the relative horizon. Then
    it is floor + (peak − floor) · decay(u), where u goes from 0 to 1 over the rest.

    Args:
        decay: a key of `DECAYS`.
        floor: 0 ≤ floor ≤ peak.

    Returns:
        [buckets] Values, within what the curve takes.
    """
    lowest = 0.0 if warmup else floor

    def decayed(start: float, stop: float) -> float:
        return floor + (peak - floor) * DECAYS[decay]((start - warmup) / (1 - warmup), (stop - warmup) / (1 - warmup))

    values = []
    for bucket in range(shape.buckets):
        start, stop = map(float, shape.place(bucket))
        if start == stop:
            value = decayed(start, stop) if start >= warmup else peak * start / warmup
        else:
            area, begin, end = 0.0, max(start, warmup), min(stop, warmup)
            if start < warmup:
                area += (end - start) * peak * (start + end) / (2 * warmup)
            if stop > warmup:
                area += (stop - begin) * decayed(begin, stop)
            value = area / (stop - start)
        values.append(min(max(value, lowest), peak))  # rounding must not leave min and max
    return values


def curve_means(decay: str, peak: float, floor: float, warmup: float, buckets: int) -> list[float]:
    """The curve's mean over each of as many equal stretches: `curve_values` of the shape `constant`."""
    return curve_values(decay, peak, floor, warmup, Constant(buckets))


def schedule_values(schedule: Schedule, name: str, shape: Shape) -> list[float]:
    """An earlier schedule in the buckets of a shape: the same bits where the earlier one has that shape.

    Args:
        schedule: with any shape, number of buckets and horizon; below as many steps as `shape` has buckets it is
            stretched to so many.
        name: a hyperparameter of the schedule with one number per bucket, learned or fixed.

    Returns:
        [buckets] Means over the steps of the earlier schedule, or values where it is at a point.
    """
    earlier = schedule.values.get(name)
    if earlier is None:
        return [schedule.fixed[name]] * shape.buckets
    horizon = max(schedule.horizon, shape.buckets)
    places = [shape.place(bucket) for bucket in range(shape.buckets)]
    return [
        _value_at(schedule, name, start) if start == stop else _mean_over(schedule.stretch(horizon), name, start, stop)
        for start, stop in places
    ]


def _mean_over(schedule: Schedule, name: str, start: Fraction, stop: Fraction) -> float:
    """The mean over the steps from `start` to `stop` of the relative horizon, rounded once."""
    shape, shares = schedule.shape(name), dict[int, float]()
    steps = range(math.ceil(start * schedule.horizon), math.ceil(stop * schedule.horizon))
    for step in steps:
        for bucket, weight in shape.readings(step, schedule.horizon):
            shares[bucket] = shares.get(bucket, 0.0) + weight
    values = schedule.values[name]
    total = sum((Fraction(values[bucket]) * Fraction(share) for bucket, share in shares.items()), Fraction(0))
    return float(total / sum(map(Fraction, shares.values())))


def _value_at(schedule: Schedule, name: str, point: Fraction) -> float:
    """The value at a point of the relative horizon: over a horizon that has a step at the point and at every knot of
    the earlier schedule. At the very edge of two of its buckets, that of the first."""
    buckets = len(schedule.values[name])
    length = point.denominator * max(1, buckets * (buckets - 1))
    return schedule.stretch(length + 1).at(int(point * length))[name]
