"""Muon for matrices (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/), AdamW for other parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fds_dist.tangents.optimizers.adam import AdamState
from fds_dist.tangents.optimizers.protocol import ByParameter, PerWeight, safe_sqrt, same_for_all

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial, chosen for its slope at 0: after `ITERATIONS` singular values are 0.7 to 1.2."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7


@dataclass(frozen=True)
class Muon(ByParameter):
    """m ← μm + (1 − μ)g, w ← (1 − lr·ξ)w − lr·√max(1, rows/columns)·NS((1 − μ)g + μm) for matrices.

    Without `nesterov`: NS(m). A matrix is a parameter of two dimensions, as for `torch.optim.Muon`. All others move by
    AdamW with `adamw_lr`, `beta1`, `beta2`, `eps` and the same weight decay. `torch.optim.Muon` iterates in bfloat16;
    here it is the dtype of the weights, so that the derivative is that of what is computed.
    """

    nesterov: bool = True

    @property
    def name(self) -> str:
        """The name in the config."""
        return "muon"

    def init(self, weights: Tensor) -> AdamState:
        """The state before the first step; `weights` [D]. A matrix's momentum is its first moment."""
        return AdamState.zero(weights)

    def update(
        self,
        weights: Tensor,
        state: AdamState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, AdamState]:
        """See `InnerOptimizer`."""
        momentum, lr, other_lr, decay = (per_weight(h[name]) for name in ("momentum", "lr", "adamw_lr", "weight_decay"))
        moments = state.after(gradient, h, per_weight)
        averaged = torch.lerp(state.first_moment, gradient, 1 - momentum)
        direction = torch.lerp(gradient, averaged, momentum) if self.nesterov else averaged
        corrected = moments.first_moment / per_weight(1 - h["beta1"] ** moments.steps)
        step = self._choose(lr * self._orthogonal(direction), other_lr * corrected / moments.scale(h, per_weight))
        weights = weights * self._choose(1 - lr * decay, 1 - other_lr * decay) - step
        return weights, moments._replace(first_moment=self._choose(averaged, moments.first_moment))

    def _choose(self, of_matrices: Tensor, of_others: Tensor) -> Tensor:
        """[D] from values [] or [D]: the first ones in matrices, the others in all other parameters."""
        layout = self.known_layout
        parts = (values.expand(layout.size).split(layout.sizes) for values in (of_matrices, of_others))
        triples = zip(layout.shapes, *parts, strict=True)
        return torch.cat([matrix if len(shape) == 2 else other for shape, matrix, other in triples])

    def _orthogonal(self, direction: Tensor) -> Tensor:
        """`direction` [D] with each matrix orthogonalized, and scaled by √max(1, rows/columns)."""
        return torch.cat(
            [
                orthogonalized(part).flatten() * math.sqrt(max(1.0, part.shape[0] / part.shape[1]))
                if part.dim() == 2
                else part.flatten()
                for part in self.known_layout.views(direction).values()
            ]
        )


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly U·Vᵀ of a matrix U·S·Vᵀ, by Newton-Schulz iterations X ← aX + (bA + cA²)X with A = XXᵀ.

    The Frobenius norm by which it is divided first has derivative 0 at a matrix of zeros, as has its lower bound.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / safe_sqrt(x.square().sum()).clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
