"""The paper's outer rule: fixed-size steps along the sign of the hypergradient, shrunk where the sign flips.

    if sign flips: step *= decay;   λ ← λ − sign(hypergradient)·step

per element of λ (FDS, arXiv 2007.07869, algorithm 1). And RProp, which grows the step as well where the sign stays
(Riedmiller & Braun, 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

from fds_dist.outer.rule import Element, OuterRule, sign_of


@dataclass(frozen=True)
class SignRule(OuterRule):
    """The sign rule: the step shrinks by `decay` at a flip, and never grows.

    A zero hypergradient moves nothing, and the sign before it is remembered for the next comparison.
    """

    growth: float = 1.0
    """Factor on the step where the sign stays: 1 in the paper, above 1 for RProp."""

    def move(self, slope: float, element: Element) -> tuple[float, Element]:
        """See `OuterRule`."""
        sign = sign_of(slope)
        if not sign:
            return 0.0, element
        agreement = sign * element.sign
        step = element.step * (self.decay if agreement < 0 else self.growth if agreement > 0 else 1.0)
        return -sign * step, element._replace(step=step, sign=sign)
