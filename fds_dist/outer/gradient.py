"""Outer rules that use the size of the hypergradient: gradient descent with momentum, and Adam.

Their steps shrink by `decay` after every outer step: past the edge of stability of the inner run hypergradients are
locally right and globally misleading, and steps that stay large leave a good schedule again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fds_dist.outer.rule import Element, OuterRule

EPSILON = 1e-12
"""Keeps Adam's quotient finite where every hypergradient so far was zero."""


@dataclass(frozen=True)
class GradientRule(OuterRule):
    """v ← momentum·v + slope;  λ ← λ − step·v."""

    momentum: float = 0.0

    def move(self, slope: float, element: Element) -> tuple[float, Element]:
        """See `OuterRule`."""
        velocity = self.momentum * element.first + slope
        return -element.step * velocity, element._replace(step=element.step * self.decay, first=velocity)

    def reach(self, move: float, element: Element) -> float:
        """The step is a learning rate here; what counts is the move itself."""
        return abs(move)


@dataclass(frozen=True)
class AdamRule(OuterRule):
    """λ ← λ − step·m̂/√ŝ with bias-corrected running means m of the slope and s of its square (Kingma & Ba, 2015)."""

    beta1: float = 0.0
    beta2: float = 0.9

    def move(self, slope: float, element: Element) -> tuple[float, Element]:
        """See `OuterRule`."""
        slope = max(-1e150, min(1e150, slope))  # so that its square is finite
        seen = element.seen + 1
        first = self.beta1 * element.first + (1 - self.beta1) * slope
        second = self.beta2 * element.second + (1 - self.beta2) * slope * slope
        mean = first / (1 - self.beta1**seen)
        size = math.sqrt(second / (1 - self.beta2**seen))
        move = -element.step * mean / (size + EPSILON)
        return move, element._replace(step=element.step * self.decay, first=first, second=second, seen=seen)
