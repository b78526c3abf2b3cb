"""Batch-norm on the statistics of its batch, with a second derivative in a few passes over the activations.

PyTorch's own takes some 25 elementwise passes: a third of a tangent's time in a Wide ResNet on a CPU. Values and first
derivatives here are PyTorch's, bit for bit.

Shapes: C = channels, M = values of a channel in the batch.

With x̂ = (x − mean)·s, s = 1/√(variance + ε) and y = γ·x̂ + β, the first derivative of a loss, given ḡ = dL/dy, is

    x̄ = γ·s·(ḡ − S/M − x̂·A/M),    γ̄ = A,    β̄ = S,    A = Σ ḡ·x̂,  S = Σ ḡ.

Let u, v, w be the adjoints of x̄, γ̄ and β̄, with T = Σ u, B = Σ u·x̂, R = Σ ḡ·u. The adjoints of ḡ, γ and x then are

    ḡ:  γ·s·(u − T/M − x̂·B/M) + v·x̂ + w
    γ:  s·(R − T·S/M − A·B/M)
    x:  a·x̂ + b·ḡ + c·u − (b·S + c·T)/M,    with k = γ·s²/M,
        b = v·s − k·B,  c = −k·A,  a = k·((T·S + 3·A·B)/M − R) − v·s·A/M.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_backward: Any = torch.ops.aten.native_batch_norm_backward


class BatchNorm(torch.autograd.Function):
    """`F.batch_norm` in training mode, for reverse mode over reverse mode on a CPU; `torch.func` does not know it."""

    @staticmethod
    def takes(x: Tensor, weight: Tensor) -> bool:
        """Whether the layer may be computed by it: GPUs have kernels of their own, halves another arithmetic."""
        return x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor] | tuple[None, None],
        momentum: float,
        eps: float,
    ) -> Tensor:
        """y, of the shape of `x` [B, C, ...].

        Args:
            running: mean and variance [C], which are moved in place.
        """
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps, ctx.has_bias = eps, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> Any:  # type: ignore[override]
        """x̄, γ̄ and β̄."""
        by_x, by_weight, by_bias = _BatchNormBackward.apply(by_y, *ctx.saved_tensors, ctx.eps)  # type: ignore[misc]
        return by_x, by_weight, by_bias if ctx.has_bias else None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """The first derivative as a function of ḡ, x and γ; the statistics follow from x."""

    @staticmethod
    def forward(
        ctx: Any, by_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x̄, γ̄ = A and β̄ = S."""
        by_x, a, s = _backward(by_y, x, weight, None, None, mean, inverse, True, eps, [True, True, True])
        ctx.save_for_backward(by_y, x, weight, mean, inverse, a, s)
        ctx.eps = eps
        return by_x, a, s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> Any:  # type: ignore[override]
        """The adjoints of ḡ, x and γ."""
        by_y, x, weight, mean, inverse, grad_weight, grad_bias = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        sample_axes = [axis for axis in range(x.dim()) if axis != 1]

        def spread(values: Tensor) -> Tensor:
            return values.view(1, -1, *[1] * (x.dim() - 2))

        by_by_y, b_sum, t_sum = _backward(u, x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True])
        r_sum = (by_y * u).sum(sample_axes)
        scaled = v * inverse
        by_by_y.addcmul_(x, spread(scaled)).add_(spread(w - scaled * mean))
        k = weight * inverse.square() / count
        along_by_y, along_u = scaled - k * b_sum, -k * grad_weight
        along_x = k * ((t_sum * grad_bias + 3 * grad_weight * b_sum) / count - r_sum) - scaled * grad_weight / count
        along_x = along_x * inverse
        constant = -(along_by_y * grad_bias + along_u * t_sum) / count - along_x * mean
        by_x = torch.addcmul(spread(constant), x, spread(along_x))
        by_x.addcmul_(by_y, spread(along_by_y)).addcmul_(u, spread(along_u))
        by_weight = inverse * (r_sum - (t_sum * grad_bias + grad_weight * b_sum) / count)
        return by_by_y, by_x, by_weight, None, None, None


FUNCTIONS: tuple[type, ...] = (BatchNorm, _BatchNormBackward)
"""The functions of this file, whose derivatives are tested here: no user need verify them."""
