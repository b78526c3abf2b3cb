"""Where hyperparameters may lie: the natural domain of each by its name, and which values have a logarithm."""

from __future__ import annotations

import math

UNIT_INTERVAL = ("momentum", "beta1", "beta2")
"""Hyperparameters in [0, 1): on the log scale the outer optimizer moves log(1 − x) instead of log(x). By base name, as
in `NATURAL_DOMAIN`: the copies for parameter groups are of the same kind."""

BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1: anything between would train as 1 in float32, with Adam's bias correction 0."""

UNBOUNDED = (-math.inf, math.inf)
NON_NEGATIVE = (0.0, math.inf)

NATURAL_DOMAIN: dict[str, tuple[float, float]] = {
    "lr": (0.0, math.inf),
    "momentum": (0.0, BELOW_ONE),
    "weight_decay": (0.0, math.inf),
    "beta1": (0.0, BELOW_ONE),
    "beta2": (0.0, BELOW_ONE),
    "eps": (0.0, math.inf),
}


def natural_domain(name: str) -> tuple[float, float]:
    """The bounds, inclusive, of the hyperparameter with this base name; none for a name of the user's own."""
    return NATURAL_DOMAIN.get(name, UNBOUNDED)


def has_logarithm(name: str, value: float) -> bool:
    """Whether the hyperparameter with this base name can start at `value` on the log scale."""
    return value < 1 if name in UNIT_INTERVAL else value > 0


def interval(low: float, high: float) -> str:
    """Bounds in words."""
    upper = "below 1" if high == BELOW_ONE else f"at most {high:g}"
    if math.isinf(low):
        return "a number" if math.isinf(high) else f"a number {upper}"
    if math.isinf(high):
        return f"a number of at least {low:g}"
    return f"a number of at least {low:g} and {upper}"
