"""How far the engine may be from plain PyTorch, and what the witness saw of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fds_dist.common.randomness import generator

STEPS = 3
"""Inner steps that are compared."""

FEW = 8
"""Samples of a batch on which derivatives are compared: they show the errors of a whole one, and cost less."""

PATIENCE = 0.1
"""Seconds that a plain step may take; where it takes longer, all is compared on few samples."""

EXACT_UP_TO = 20_000_000
"""Weights up to which the comparison is made in float64, in copies that take twice the memory of float32."""


@dataclass(frozen=True)
class Tolerance:
    """Of relative errors, Euclidean over all entries."""

    steps: float
    """Of losses, gradients and updates: another order of sums, amplified by some steps of training."""
    products: float
    """Of central differences of gradients: their own error, and a ReLU that switches in between."""
    nudges: tuple[float, ...]
    """Relative steps of differences, tried until one agrees: kinks spoil large ones and rounding small ones."""


TOLERANCES = {
    # Some operators of PyTorch hold float32 constants: 3e-8. What was met of wrong products is off by 1e-2 and more.
    torch.float64: Tolerance(1e-6, 1e-3, (1e-7, 1e-9, 1e-5)),
    # Deep networks amplify 1e-7 by up to 1e5 at their initial weights.
    torch.float32: Tolerance(3e-2, 3e-1, (1e-3, 1e-2, 1e-4)),
    # Autocast: the same kernels round alike, but another order of sums flips last bits of 4e-3, and deep networks
    # amplify them. Products have been met 0.24 from exact ones at a WRN-16-1's initial weights; a wrong sign is off by
    # 2, a missing factor of 2 by 0.5.
    torch.bfloat16: Tolerance(1e-1, 4.5e-1, ()),
}

NUDGE = 0.01
"""How far from the initial weights products are compared where they do not agree there, relative to the weights."""

SMALLEST_SHARE = 1e-6
"""Of all buffers together: smaller ones are compared with this share instead of their own size, which may be nothing
but rounding (the mean of what batch-norm has centred)."""


@dataclass(frozen=True)
class Testimony:
    """What the witness saw: relative errors."""

    dtype: torch.dtype
    steps: float | None
    """Of losses, gradients, weights, buffers and validation loss, the largest; None where plain PyTorch diverges."""
    products: float | None = None
    """None where the estimator takes none."""
    hypergradient: float | None = None
    """Along one direction; None where it cannot be told."""
    low: tuple[float | None, float | None] | None = None
    """Under autocast: of steps as in `steps`, and of a product against the one without autocast; None: no autocast."""
    coarse: str = ""
    """What in the user's code computes below float64; raised to float64 for the comparison, if `dtype` is float64."""

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        if self.steps is None:
            return "not checked against plain PyTorch, whose losses explode within three steps"
        parts = [f"{STEPS} steps in {kind}, losses, gradients and weights to {self.steps:.0e}"]
        parts += [] if self.products is None else [f"products to {self.products:.0e}"]
        parts += [] if self.hypergradient is None else [f"hypergradient to {self.hypergradient:.0e}"]
        if self.low is not None:
            errors = zip(("steps", "products"), self.low, strict=True)
            under = [f"{name} to {error:.0e}" for name, error in errors if error is not None]
            parts += [f"under bf16 autocast {' and '.join(under)}"] if under else []
        raised = ", raised to float64 here" if self.dtype == torch.float64 else ""
        reason = f" (the network or the loss computes in {self.coarse}{raised})" if self.coarse else ""
        return f"checked against plain PyTorch: {', '.join(parts)}{reason}"


def relative(ours: float | Tensor, reference: float | Tensor, smallest: float = 0.0) -> float:
    """|ours − reference| / max(|reference|, smallest)."""
    ours, reference = (torch.as_tensor(part) for part in (ours, reference))
    ours, reference = (part.to(torch.complex128 if part.is_complex() else torch.float64) for part in (ours, reference))
    difference, norm = float((ours - reference).norm()), max(float(reference.norm()), smallest)
    return difference / norm if norm else difference


def random_like(vector: Tensor, *keys: str) -> Tensor:
    """A random direction, the same on all ranks."""
    numbers = torch.randn(len(vector), generator=generator("witness", *keys), dtype=torch.float64)
    return numbers.to(vector)


def total_norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean, over all entries of all tensors."""
    return sum(float(tensor.abs().double().norm()) ** 2 for tensor in tensors) ** 0.5


def smallest_size(buffers: Sequence[Tensor]) -> float:
    """What the norm of a buffer is taken for, at least, where errors are relative to it."""
    return SMALLEST_SHARE * total_norm(buffers)


def nearby(weights: Tensor) -> Tensor:
    """Weights at a random place near `weights`."""
    away = random_like(weights, "away")
    return weights + NUDGE * float(weights.norm() / away.norm()) * away
