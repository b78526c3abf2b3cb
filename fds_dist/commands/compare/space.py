"""The space that the black boxes search: the learned elements of λ, each in a finite range and on a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fds_dist.common.domain import has_logarithm, interval, natural_domain
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest
from fds_dist.config.compare import CompareConfig
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

CUSTOMARY: dict[str, tuple[float, float]] = {
    "lr": (1e-4, 1.0),
    "momentum": (0.0, 0.99),
    "weight_decay": (1e-6, 1e-2),
    "beta1": (0.0, 0.99),
    "beta2": (0.9, 0.9999),
    "eps": (1e-10, 1e-4),
    "adamw_lr": (1e-4, 1.0),
    "lr_decay": (0.0, 0.1),
    "momentum_decay": (0.0, 0.1),
}
"""Ranges of hyperparameters whose bounds are only those of their natural domain."""

WARMUP = "warmup"
"""The number of a curve that is no hyperparameter: the share of the horizon over which the learning rate rises."""

CUSTOMARY_WARMUP = (0.0, 0.3)


@dataclass(frozen=True)
class SearchRange:
    """The range in which all buckets of one hyperparameter are searched."""

    owner: Hyperparameter
    """Its scale is that of the search, which may differ from the outer optimizer's."""
    low: float
    high: float

    @property
    def coordinates(self) -> tuple[float, float]:
        """The range in the coordinate of the scale, ascending: the black box draws evenly from it."""
        ends = self.owner.to_scale(self.low), self.owner.to_scale(self.high)
        return min(ends), max(ends)  # log(1 - x) decreases

    def value(self, coordinate: float) -> float:
        """The value at a coordinate, within the range despite rounding."""
        return min(max(self.owner.from_scale(coordinate), self.low), self.high)


def search_ranges(space: HyperparameterSpace, options: CompareConfig) -> tuple[SearchRange, ...]:
    """One range per learned hyperparameter: `compare.ranges`, else its bounds, else the customary range.

    The scale is logarithmic if the options ask for it and both ends have a logarithm.

    Raises:
        UserError: a range is for a hyperparameter that is not learned, exceeds the bounds, or is missing where needed.
    """
    known = [name for owner in space.learned for name in (owner.name, owner.base)]
    faults = []
    for name, ends in options.ranges.items():
        if name == WARMUP and name not in known:
            if ends[0] < 0 or ends[1] >= 1:
                problem = f"[{ends[0]:g}, {ends[1]:g}] is out of range"
                faults.append(Fault(f"compare.ranges.{name}", problem, "shares of the horizon: at least 0 and below 1"))
        elif name not in known:
            similar = nearest(name, known)
            suggestion = f"compare.ranges.{similar}" if similar else ""
            learned = ", ".join(owner.name for owner in space.learned)
            faults.append(Fault(f"compare.ranges.{name}", "is not learned", f"one of {learned}", suggestion))
    ranges = []
    for owner in space.learned:
        low, high = _range(owner, options.ranges, options.scale)
        key = f"compare.ranges.{owner.name}"
        if not low < high:
            faults.append(Fault(key, "is missing, and the bounds are not finite", "two numbers, [low, high]"))
        elif (owner.clamp(low), owner.clamp(high)) != (low, high):
            faults.append(Fault(key, f"[{low:g}, {high:g}] goes beyond the bounds", interval(*owner.bounds)))
        else:
            logarithmic = options.scale == "log" and has_logarithm(owner.base, low) and has_logarithm(owner.base, high)
            ranges.append(SearchRange(replace(owner, scale="log" if logarithmic else "linear"), low, high))
    if faults:
        raise UserError(faults)
    return tuple(ranges)


def warmup_range(options: CompareConfig) -> SearchRange:
    """The range of a warm-up, as a share of the horizon: `compare.ranges.warmup`, else the customary one."""
    low, high = options.ranges.get(WARMUP, CUSTOMARY_WARMUP)
    return SearchRange(Hyperparameter(WARMUP, init=low, step=0.0, bounds=(0.0, 1.0)), low, high)


def _range(owner: Hyperparameter, configured: Mapping[str, Sequence[float]], scale: str) -> tuple[float, float]:
    """(low, high); NaN where there is no bound."""
    configured_range = configured.get(owner.name) or configured.get(owner.base)
    if configured_range:
        return configured_range[0], configured_range[1]
    natural = natural_domain(owner.base)
    customary = CUSTOMARY.get(owner.base)
    ends = []
    for side in (0, 1):
        bound = owner.bounds[side]
        is_chosen = math.isfinite(bound) and bound != natural[side]
        if customary and not (is_chosen and (scale == "linear" or has_logarithm(owner.base, bound))):
            ends.append(owner.clamp(customary[side]))
        else:
            ends.append(bound if math.isfinite(bound) else math.nan)
    return ends[0], ends[1]
