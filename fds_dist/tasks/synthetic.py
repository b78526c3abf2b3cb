"""A linear least-squares problem whose inner run and hypergradients are known in closed form: an oracle for tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fds_dist.common import limits
from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, FromOne, Seed, expects
from fds_dist.common.options import checked
from fds_dist.common.randomness import generator, seeded
from fds_dist.common.words import bytes_text

_Whole = Annotated[int, Field(strict=True, ge=1)]
Dimension = Annotated[_Whole, Field(le=limits.DIMENSION), expects("a whole number of at least 1")]
Samples = Annotated[_Whole, Field(le=limits.SAMPLES), expects("a whole number of at least 1")]


class LeastSquares:
    """Both losses are exact quadratics of the weight vector ``w`` (length d), with one curvature and two optima:

        train       ½ mean((Xw − y)²) = ½ (w − a)ᵀ A (w − a)        A = XᵀX / n,  y = Xa
        validation  ½ (w − b)ᵀ A (w − b)

    so that t steps of gradient descent with rate α give ``w_t = a + (I − αA)ᵗ (w₀ − a)``. Every train batch is the same
    full batch, the validation batch serves as test batch too, and every model starts from ``w0``: batches and
    ``build_model`` ignore their arguments. All tensors are float64.

    Attributes: ``curvature`` A (d×d, eigenvalues log-spaced from 1 down to 1/condition), ``optimum`` a, ``val_optimum``
    b and ``w0`` (d each).
    """

    def __init__(self, dimension: int, samples: int, steps_per_epoch: int, condition: float, seed: int) -> None:
        random = generator(seed, "synthetic")

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        eigenvalues = torch.logspace(0, -math.log10(condition), dimension, dtype=torch.float64)
        basis = torch.linalg.qr(normal(dimension, dimension)).Q
        orthonormal = torch.linalg.qr(normal(samples, dimension)).Q  # n×d
        inputs = math.sqrt(samples) * orthonormal @ (eigenvalues.sqrt()[:, None] * basis.T)

        self.curvature = basis @ (eigenvalues[:, None] * basis.T)
        self.optimum = normal(dimension)
        self.val_optimum = normal(dimension)
        self.w0 = torch.ones(dimension, dtype=torch.float64)
        self.steps_per_epoch = steps_per_epoch
        self.input_shape = (dimension,)
        self._train = inputs, (inputs @ self.optimum)[:, None]
        self._val = inputs, (inputs @ self.val_optimum)[:, None]

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Batch]:
        return repeat(self._train, self.steps_per_epoch)

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        return iter([self._val])

    def test_batches(self) -> Iterator[Batch]:
        return iter([self._val])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (output - target).square().mean()

    def build_model(self, seed: int) -> nn.Linear:
        with seeded(seed):  # what the constructor draws is thrown away, and must not move the global generator
            model = nn.Linear(len(self.w0), 1, bias=False)
        model.weight = nn.Parameter(self.w0.clone()[None])
        return model


@checked("task")
def synthetic(
    *,
    dimension: Dimension = 10,
    samples: Samples = 64,
    steps_per_epoch: Count = 20,
    condition: FromOne = 10.0,
    seed: Seed = 0,
) -> LeastSquares:
    """A `LeastSquares` problem drawn from ``seed``. Raises `UserError` naming each option out of range."""
    if samples * dimension > limits.SAMPLES * 10:
        problem = f"{samples:,} × {dimension:,} would need {bytes_text(24 * samples * dimension)} of memory"
        raise UserError(Fault("task.samples", problem, f"samples × dimension of at most {10 * limits.SAMPLES:,}"))
    if samples < dimension:
        raise UserError(Fault("task.samples", f"{samples} is too few", f"at least dimension, {dimension}"))
    return LeastSquares(dimension, samples, steps_per_epoch, condition, seed)
