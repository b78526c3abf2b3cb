"""Where a learned schedule begins: the values of its buckets from a curve, or from an earlier schedule. Needs no torch.

Bucket i of n has the stretch [i/n, (i+1)/n] of the relative horizon, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from fds_dist.schedule.buckets import bucket_window
from fds_dist.schedule.schedule import Schedule


def mean_cosine(start: float, stop: float) -> float:
    """The mean of (1 + cos πx) / 2 for x from `start` to `stop`."""
    return 0.5 + (math.sin(math.pi * stop) - math.sin(math.pi * start)) / (2 * math.pi * (stop - start))


def mean_line(start: float, stop: float) -> float:
    """The mean of 1 − x for x from `start` to `stop`."""
    return 1 - (start + stop) / 2


DECAYS: dict[str, Callable[[float, float], float]] = {"cosine": mean_cosine, "linear": mean_line}
"""The name of a decay from 1 at 0 to 0 at 1 → its mean over a stretch."""


def curve_means(decay: str, peak: float, floor: float, warmup: float, buckets: int) -> list[float]:
    """The mean of a warm-up and a decay over each of the buckets, by the curve's integral.

    The curve rises in a line from 0 to `peak` over the first `warmup` (0 ≤ warmup < 1) of the relative horizon. Then
    it is floor + (peak − floor) · decay(u), where u goes from 0 to 1 over the rest.

    Args:
        decay: a key of `DECAYS`.
        floor: 0 ≤ floor ≤ peak.

    Returns:
        [buckets] Means, within what the curve takes.
    """
    lowest = 0.0 if warmup else floor
    means = []
    for bucket in range(buckets):
        start, stop = bucket / buckets, (bucket + 1) / buckets
        area = 0.0
        if start < warmup:
            end = min(stop, warmup)
            area += (end - start) * peak * (start + end) / (2 * warmup)
        if stop > warmup:
            begin = max(start, warmup)
            share = DECAYS[decay]((begin - warmup) / (1 - warmup), (stop - warmup) / (1 - warmup))
            area += (stop - begin) * (floor + (peak - floor) * share)
        means.append(min(max(area / (stop - start), lowest), peak))  # rounding must not leave min and max
    return means


def schedule_means(schedule: Schedule, name: str, buckets: int) -> list[float]:
    """The mean of an earlier schedule over the steps of each of `buckets` buckets: as many as it has are the same bits.

    Args:
        schedule: with any number of buckets and any horizon; below `buckets` steps it is stretched to so many.
        name: a hyperparameter of the schedule with one number per bucket, learned or fixed.

    Returns:
        [buckets] Means, each rounded once.
    """
    earlier, horizon = schedule.values.get(name), max(schedule.horizon, buckets)
    if earlier is None:
        return [schedule.fixed[name]] * buckets
    windows = [bucket_window(bucket, len(earlier), horizon) for bucket in range(len(earlier))]
    means = []
    for bucket in range(buckets):
        steps = bucket_window(bucket, buckets, horizon)
        total = Fraction(0)
        for value, window in zip(earlier, windows, strict=True):
            shared = range(max(steps.start, window.start), min(steps.stop, window.stop))
            total += Fraction(value) * len(shared)
        means.append(float(total / len(steps)))
    return means
