"""Inner optimizers: pure functions `init` and `update` whose hyperparameters are arguments; one file each."""

from __future__ import annotations

from fds_dist.tangents.optimizers.adam import Adam, AdamState
from fds_dist.tangents.optimizers.protocol import (
    Around,
    InnerOptimizer,
    PerWeight,
    bound,
    judged,
    judges_average,
    needs_layout,
    safe_sqrt,
    same_for_all,
    ties,
)
from fds_dist.tangents.optimizers.registry import INNER_OPTIMIZERS, make_inner_optimizer, optimizer_of
from fds_dist.tangents.optimizers.sgd import SGD, SGDState

__all__ = [
    "INNER_OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamState",
    "Around",
    "InnerOptimizer",
    "PerWeight",
    "SGDState",
    "bound",
    "judged",
    "judges_average",
    "make_inner_optimizer",
    "needs_layout",
    "optimizer_of",
    "safe_sqrt",
    "same_for_all",
    "ties",
]
