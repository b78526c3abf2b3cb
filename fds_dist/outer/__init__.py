"""Outer optimizers: pure rules that move the hyperparameters λ along their hypergradients."""

from __future__ import annotations

from fds_dist.outer.gradient import AdamRule, GradientRule
from fds_dist.outer.rule import OuterRule, OuterState, OuterStep
from fds_dist.outer.sign import SignRule

__all__ = ["AdamRule", "GradientRule", "OuterRule", "OuterState", "OuterStep", "SignRule"]
