"""Outer optimizers: pure rules that move the elements of λ along their hypergradients.

All arithmetic uses Python floats, so that every rank takes the same step to the last bit.

The paper's rule takes steps of fixed size against the sign of the hypergradient, and shrinks them when the sign flips
(FDS, arXiv 2007.07869, algorithm 1). RProp also grows a step while the sign stays (Riedmiller & Braun, 1993). Gradient
descent and Adam use the size of the hypergradient too, and their steps shrink by `decay` after every outer step: past
the inner run's edge of stability, hypergradients are locally right but globally misleading, and steps that stayed large
would leave a good schedule again.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from fds_dist.common.records import NonNegative, NotNaN, Whole
from fds_dist.schedule.space import HyperparameterSpace

SHRINK = 0.5
"""Factor on a step when a hypergradient is not finite, or when the inner run diverged."""


Sign = Annotated[int, Field(ge=-1, le=1)]


class Element(NamedTuple):
    """The state of one element of λ. Every rule uses `step`, and those of the other fields that it needs."""

    step: NonNegative  # in units of the hyperparameter's scale
    sign: Sign = 0  # of the last non-zero hypergradient; 0 before the first
    first: NotNaN = 0.0  # velocity, or running mean of the hypergradient
    second: NonNegative = 0.0  # running mean of its square
    seen: Whole = 0  # number of hypergradients so far


@dataclass(frozen=True)
class OuterState:
    """The state of an outer optimizer."""

    elements: tuple[Element, ...]  # [K]
    failures: Whole = 0  # outer steps in a row with a non-finite hypergradient

    @property
    def steps(self) -> tuple[float, ...]:
        """Step sizes [K]."""
        return tuple(element.step for element in self.elements)


@dataclass(frozen=True)
class OuterStep:
    """The result of one outer step."""

    values: list[float]  # [K] the new λ
    state: OuterState
    converged: bool
    non_finite: tuple[int, ...]  # elements with a non-finite hypergradient: they stay, and their step shrinks


@dataclass(frozen=True)
class OuterRule(ABC):
    """An outer optimizer: the rule by which one element moves. A relative `tolerance` ends the search."""

    kind: ClassVar[str]
    """Rules of the same kind take over each other's state."""

    decay: float = 0.5
    tolerance: float = 0.05

    @abstractmethod
    def move(self, slope: float, element: Element) -> tuple[float, Element]:
        """The move of one element along its hypergradient `slope`, both in its own scale, and its next state."""

    def reach(self, move: float, element: Element) -> float:
        """The distance that the element moves in one step, to compare with the tolerance."""
        return element.step

    def init(self, space: HyperparameterSpace) -> OuterState:
        """The state before the first outer step."""
        return OuterState(tuple(Element(slot.owner.step) for slot in space.elements))

    def update(
        self,
        space: HyperparameterSpace,
        values: Sequence[float],
        hypergradients: Sequence[float],
        state: OuterState,
    ) -> OuterStep:
        """The step from λ [K] with its hypergradients [K] to the next λ.

        An element whose hypergradient is NaN or infinite keeps its value and halves its step, unlike one of sign 0.
        """
        moved, elements, non_finite, settled = list(values), list(state.elements), [], True
        for index, (owner, *_) in enumerate(space.elements):
            hypergradient, value = hypergradients[index], values[index]
            if not math.isfinite(hypergradient):
                non_finite.append(index)
                elements[index] = shrunk(elements[index])
                continue
            move, elements[index] = self.move(bounded_product(hypergradient, owner.scale_slope(value)), elements[index])
            if move:
                moved[index] = owner.clamp(owner.from_scale(owner.to_scale(value) + move))
            # On a log scale a step is already relative.
            size = abs(moved[index]) if owner.scale == "linear" else 1.0
            settled = settled and self.reach(move, elements[index]) < self.tolerance * size
        failures = state.failures + 1 if non_finite else 0
        return OuterStep(moved, OuterState(tuple(elements), failures), settled and not non_finite, tuple(non_finite))

    def retreat(self, values: Sequence[float], hypergradients: Sequence[float], state: OuterState) -> OuterStep:
        """The step back to `values` [K], with half the steps and no momentum, after an inner run that diverged."""
        elements = tuple(shrunk(element)._replace(first=0.0) for element in state.elements)
        finite = all(map(math.isfinite, hypergradients))
        return OuterStep(list(values), OuterState(elements, 0 if finite else state.failures + 1), False, ())


def shrunk(element: Element) -> Element:
    """The element with half its step."""
    return element._replace(step=element.step * SHRINK)


def bounded_product(a: float, b: float) -> float:
    """a·b; a product that would overflow, or underflow to zero, becomes the extreme number of the same sign."""
    product = a * b
    if math.isinf(product):
        return math.copysign(sys.float_info.max, product)
    return product if product or not (a and b) else math.copysign(5e-324, math.copysign(1.0, a) * b)


def sign_of(x: float) -> int:
    """−1, 0 or 1."""
    return (x > 0) - (x < 0)


@dataclass(frozen=True)
class SignRule(OuterRule):
    """The sign rule: the step shrinks by `decay` when the sign flips, and grows by `growth` while it stays.

    A zero hypergradient moves nothing; the sign before it is kept for the next comparison.
    """

    kind = "sign"
    growth: float = 1.0
    """Factor on the step while the sign stays: 1 in the paper, above 1 for RProp."""

    def move(self, slope: float, element: Element) -> tuple[float, Element]:
        """See `OuterRule`."""
        sign = sign_of(slope)
        if not sign:
            return 0.0, element
        agreement = sign * element.sign
        step = element.step * (self.decay if agreement < 0 else self.growth if agreement > 0 else 1.0)
        return -sign * step, element._replace(step=step, sign=sign)


EPSILON = 1e-12
"""Keeps Adam's quotient finite while every hypergradient so far is zero."""


@dataclass(frozen=True)
class GradientRule(OuterRule):
    """v ← momentum·v + slope;  λ ← λ − step·v."""

    kind = "gradient"
    momentum: float = 0.0

    def move(self, slope: float, element: Element) -> tuple[float, Element]:
        """See `OuterRule`."""
        velocity = self.momentum * element.first + slope
        return -element.step * velocity, element._replace(step=element.step * self.decay, first=velocity)

    def reach(self, move: float, element: Element) -> float:
        """The size of the move: the step is only a learning rate here."""
        return abs(move)


@dataclass(frozen=True)
class AdamRule(OuterRule):
    """λ ← λ − step·m̂/√ŝ with bias-corrected running means m of the slope and s of its square (Kingma & Ba, 2015)."""

    kind = "adam"
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
