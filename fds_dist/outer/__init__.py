"""Outer optimizers: pure rules that move the hyperparameters λ along their hypergradients."""

from __future__ import annotations

from fds_dist.outer.sign import OuterState, OuterStep, SignRule

__all__ = ["OuterState", "OuterStep", "SignRule"]
