"""FDS beside greedy and black-box rivals, at equal compute and judged on fresh seeds."""

from __future__ import annotations

from fds_dist.compare.comparison import METHODS, compare
from fds_dist.compare.costs import estimator_cost
from fds_dist.compare.plot import plot_comparison
from fds_dist.compare.results import Comparison
from fds_dist.compare.table import print_comparison

__all__ = ["METHODS", "Comparison", "compare", "estimator_cost", "plot_comparison", "print_comparison"]
