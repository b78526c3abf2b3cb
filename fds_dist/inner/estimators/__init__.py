"""Estimators of the hypergradient, one file each behind one signature."""

from __future__ import annotations

from fds_dist.inner.estimate import Estimate, Estimator
from fds_dist.inner.estimators.forward import estimate_forward
from fds_dist.inner.estimators.greedy import estimate_greedy
from fds_dist.inner.estimators.random_directions import estimate_by_directions
from fds_dist.inner.estimators.reverse import estimate_reverse

ESTIMATORS: dict[str, Estimator] = {
    "forward": estimate_forward,
    "reverse": estimate_reverse,
    "greedy": estimate_greedy,
    "random_directions": estimate_by_directions,
}
"""By name in the config, `estimator`."""

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "estimate_by_directions",
    "estimate_forward",
    "estimate_greedy",
    "estimate_reverse",
]
