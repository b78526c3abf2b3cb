"""The paper's outer rule: fixed-size steps along the sign of the hypergradient, shrunk where the sign flips.

    if sign flips: step *= decay;   λ ← λ − sign(hypergradient)·step

per element of λ (FDS, arXiv 2007.07869, algorithm 1). All arithmetic is on Python floats, so that every rank takes
the same step to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fds_dist.hyperparameters import HyperparameterSpace


@dataclass(frozen=True)
class OuterState:
    """State per element of λ [K]."""

    steps: tuple[float, ...]  # step sizes, in units of the hyperparameter's scale
    signs: tuple[int, ...]  # sign of the last non-zero hypergradient, 0 before there was one
    failures: int = 0  # outer steps in a row with a hypergradient that was not finite


@dataclass(frozen=True)
class OuterStep:
    """What one outer step decided."""

    values: list[float]  # [K] the new λ
    state: OuterState
    converged: bool
    non_finite: tuple[int, ...]  # elements whose hypergradient was not finite: their λ stayed, their step was shrunk


@dataclass(frozen=True)
class SignRule:
    """The sign rule with step `decay` at a flip and a relative `tolerance` that ends the search."""

    decay: float = 0.5
    tolerance: float = 0.05

    def init(self, space: HyperparameterSpace) -> OuterState:
        """The state before the first outer step."""
        return OuterState(tuple(owner.step for owner, _ in space.elements), (0,) * space.size)

    def update(
        self,
        space: HyperparameterSpace,
        values: Sequence[float],
        hypergradients: Sequence[float],
        state: OuterState,
    ) -> OuterStep:
        """λ [K] and its hypergradients [K] to the next λ.

        An element whose hypergradient is NaN or infinite keeps its value and halves its step: it is not "sign 0".
        A zero hypergradient moves nothing, and the sign before it is remembered for the next comparison.
        """
        moved, steps, signs, non_finite = [], [], [], []
        for index, (owner, _) in enumerate(space.elements):
            value, step, last_sign = values[index], state.steps[index], state.signs[index]
            slope = hypergradients[index] * owner.scale_slope(value)
            if not math.isfinite(slope):
                non_finite.append(index)
                step, sign = step * 0.5, last_sign
            else:
                sign = (slope > 0) - (slope < 0)
                step = step * self.decay if sign * last_sign < 0 else step
                if sign:
                    value = owner.clamp(owner.from_scale(owner.to_scale(value) - sign * step))
                sign = sign or last_sign
            moved.append(value)
            steps.append(step)
            signs.append(sign)
        failures = state.failures + 1 if non_finite else 0
        return OuterStep(
            values=moved,
            state=OuterState(tuple(steps), tuple(signs), failures),
            converged=not non_finite and self._converged(space, moved, steps),
            non_finite=tuple(non_finite),
        )

    def _converged(self, space: HyperparameterSpace, values: Sequence[float], steps: Sequence[float]) -> bool:
        """Whether every step is below the tolerance, relative to its value (on a log scale a step is relative)."""
        return all(
            step < self.tolerance * (abs(value) if owner.scale == "linear" else 1.0)
            for (owner, _), value, step in zip(space.elements, values, steps, strict=True)
        )
