"""Batch-norm and instance-norm whose running statistics are values of the run, not of the module.

Shapes: C = channels of a layer, B = samples.

The layers' own tracking is off from here on: each forward pass in training mode puts new statistics in the place of
the old ones. Where they are constants of a step, PyTorch's own operator moves copies of the old ones. Where derivatives
pass through them, or `torch.func` or a trace watches, elementary operations make them: an update in place is unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from fds_dist.common.batch import WHOLE, Share
from fds_dist.common.precision import HALVES, widened
from fds_dist.tangents.batch_norm import BatchNorm

Moments = tuple[Tensor, Tensor]
"""Mean and unbiased variance [C]."""


class RunningStatistics:
    """The layers of a module that keep running statistics.

    Attributes:
        share: the part of the batch that the coming calls see.
        frozen: whether the statistics stay as they are, in training mode too.
        differentiable: whether derivatives pass through the statistics; else they are constants of a step.
        twice: whether the module will be differentiated twice.
        modules: the layers whose statistics are tracked.
    """

    def __init__(self, module: nn.Module) -> None:
        self.share: Share = WHOLE
        self.frozen = self.differentiable = self.twice = False
        self.modules: list[_BatchNorm | _InstanceNorm] = []
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                self._take_over(layer, layer.track_running_stats, self._batch_norm(layer))
                layer.track_running_stats = False  # evaluation still reads what there is
            elif isinstance(layer, _InstanceNorm) and layer.track_running_stats:
                self._take_over(layer, True, self._instance_norm(layer))

    def _take_over(self, layer: _BatchNorm | _InstanceNorm, tracked: bool, forward: Callable[[Tensor], Tensor]) -> None:
        if tracked:
            self.modules.append(layer)
        layer.forward = forward  # type: ignore[method-assign, assignment]

    def _batch_norm(self, layer: _BatchNorm) -> Callable[[Tensor], Tensor]:
        """The layer's forward pass, over the whole batch where that is split."""
        own_forward, tracked = layer.forward, layer.track_running_stats
        does_more = type(layer).forward is not _BatchNorm.forward  # such as to normalize and activate
        # Another forward, of a user's own or of a network that shares the layer, may see to more than `_fused` does.
        is_plain = not does_more and "forward" not in vars(layer)

        def normalize(x: Tensor, fused: Callable[[], Tensor]) -> Tensor:
            update = tracked and layer.training and not self.frozen
            whole = self.share.each is not None and (layer.training or layer.running_mean is None)
            if not whole:
                if layer.training and is_plain and self._takes(layer, x):
                    return self._fused(layer, x, update)
                if update:
                    _move(layer, _moments(self._seen(x)))
                return fused() if layer.training else self._on_running(layer, x, fused)
            mean, variance, count = _whole_moments(x, self.share)
            if update:
                unbiased = count / (count - 1)
                _move(layer, (self._seen(mean), self._seen(variance) * unbiased))
            return _normalized(layer, x, mean, variance)

        def forward_around(x: Tensor) -> Tensor:
            with _InsteadOfBatchNorm(normalize) as instead:
                y = own_forward(x)
            if not instead.called and tracked and layer.training and not self.frozen:
                _move(layer, _moments(self._seen(x)))
            return y

        if does_more:
            return forward_around
        return lambda x: normalize(x, lambda: own_forward(x))

    def _takes(self, layer: _BatchNorm, x: Tensor) -> bool:
        """Whether `_fused` may compute `layer` at `x`; what PyTorch refuses it refuses with a message of its own."""
        averages_all = layer.momentum is None  # whose share is a number on the device
        # `torch.func`, as `torch.autograd.Function.apply` asks, and traces, whose tensors are of another class.
        watched = torch._C._are_functorch_transforms_active() or (type(x) is not Tensor and not _has_shape_alone(x))
        return not (averages_all or watched or self.differentiable) and x.dim() > 1 and x.numel() > x.shape[1]

    def _fused(self, layer: _BatchNorm, x: Tensor, update: bool) -> Tensor:
        """Normalized by the statistics of `x`; with `update` the layer gets new running statistics."""
        layer._check_input_dim(x)
        running = (None, None)
        if update:
            _count_batch(layer)
            running = tuple(layer._buffers[name].clone() for name in _RUNNING)  # type: ignore[union-attr]
            layer._buffers.update(zip(_RUNNING, running, strict=True))
        if self.twice:
            weight = x.new_ones(x.shape[1]) if layer.weight is None else layer.weight
            if BatchNorm.takes(x, weight):
                return BatchNorm.apply(x, weight, layer.bias, running, layer.momentum, layer.eps)  # type: ignore[return-value]
        return F.batch_norm(x, *running, layer.weight, layer.bias, True, layer.momentum, layer.eps)  # type: ignore[arg-type]

    def _instance_norm(self, layer: _InstanceNorm) -> Callable[[Tensor], Tensor]:
        own_forward = layer.forward

        def forward(x: Tensor) -> Tensor:
            if not layer.training:
                return self._on_running(layer, x, lambda: own_forward(x))
            batched = x if x.dim() == layer._get_no_batch_dim() + 1 else x[None]
            if not self.frozen:
                _move(layer, _instance_moments(self._seen(batched), self.share))
            y = F.instance_norm(batched, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
            return y if batched is x else y[0]

        return forward

    def _on_running(self, layer: _BatchNorm | _InstanceNorm, x: Tensor, fused: Callable[[], Tensor]) -> Tensor:
        """Normalized by the running statistics; PyTorch's own operator has no derivative by them."""
        mean, variance = layer.running_mean, layer.running_var
        if not self.differentiable or mean is None or variance is None:
            return fused()
        return _normalized(layer, x, mean, variance)

    def _seen(self, x: Tensor) -> Tensor:
        return x if self.differentiable else x.detach()


class _InsteadOfBatchNorm(TorchFunctionMode):
    """Within the block `F.batch_norm(x, ...)` is `normalize(x, the call itself)`; `called` tells whether it was met."""

    def __init__(self, normalize: Callable[[Tensor, Callable[[], Tensor]], Tensor]) -> None:
        super().__init__()
        self.normalize, self.called = normalize, False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`, or `normalize` in its place."""
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.called = True
        return self.normalize(args[0] if args else kwargs["input"], lambda: func(*args, **kwargs))


_RUNNING = ("running_mean", "running_var")


def _count_batch(layer: _BatchNorm) -> None:
    if (count := layer._buffers["num_batches_tracked"]) is not None:
        layer._buffers["num_batches_tracked"] = count + 1


def _move(layer: _BatchNorm | _InstanceNorm, moments: Moments) -> None:
    """Replaces the layer's running statistics, as PyTorch would have updated them."""
    buffers, momentum = layer._buffers, layer.momentum
    if isinstance(layer, _BatchNorm):
        _count_batch(layer)
    for name, moment in zip(_RUNNING, moments, strict=True):
        if (running := buffers[name]) is not None:
            share: Any = momentum
            if momentum is None:  # instance-norm then never moves them, batch-norm averages over all batches
                batches = buffers["num_batches_tracked"] if isinstance(layer, _BatchNorm) else None
                share = 0.0 if batches is None else 1.0 / batches.to(running)
            buffers[name] = running + share * (moment.to(running) - running)


def _sample_axes(x: Tensor) -> list[int]:
    """All axes but the channels', which is the second."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _moments(x: Tensor) -> Moments:
    """Of `x` [B, C, ...]."""
    variance, mean = torch.var_mean(widened(x), _sample_axes(x))
    return mean, variance


def _instance_moments(x: Tensor, share: Share) -> Moments:
    """Of each sample's channels `x` [B, C, ...], averaged over the samples of the whole batch."""
    variance, mean = torch.var_mean(widened(x), list(range(2, x.dim())))  # [B, C]
    if share.each is None:
        return mean.mean(0), variance.mean(0)
    samples = round(len(x) / share.fraction)
    mean, variance = share.each(torch.stack((mean.sum(0), variance.sum(0)))).sum(0) / samples
    return mean, variance


def _whole_moments(x: Tensor, share: Share) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance [C] of the batch that `x` [B, C, ...] is the `share` of, and of how many values.

    From those of the parts p with the fractions f of the batch (Chan, Golub & LeVeque, 1979):

        mean = Σ f_p·mean_p,    variance = Σ f_p·(variance_p + (mean_p − mean)²)

    All of a part crosses the axis at once, forward, backward and in each derivative of these. A sum of squares would
    too, but cancel where a mean is large.

    Raises:
        ValueError: the share does not know the other parts.
    """
    if share.each is None:
        raise ValueError("a share without its other parts")
    x = widened(x)
    variance, mean = torch.var_mean(x, _sample_axes(x), correction=0)
    parts = share.each(torch.stack((mean, variance, torch.full_like(mean, share.fraction))))
    means, variances, fractions = parts.unbind(1)  # [P, C] each
    mean = (fractions * means).sum(0)
    variance = (fractions * (variances + (means - mean) ** 2)).sum(0)
    return mean, variance, round(x.numel() / x.shape[1] / share.fraction)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`values` [C] in a shape that broadcasts over `x` [B, C, ...]."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _normalized(layer: _BatchNorm | _InstanceNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`x` [B, C, ...] normalized by these moments [C], with the layer's weight and bias."""
    y = (x - _per_channel(mean, x)) * _per_channel((variance + layer.eps).rsqrt(), x)
    if layer.weight is not None:
        y = y * _per_channel(layer.weight, x)
    if layer.bias is not None:
        y = y + _per_channel(layer.bias, x)
    return y.to(x.dtype) if x.dtype in HALVES else y


def _has_shape_alone(x: Tensor) -> bool:
    """Whether it is a fake tensor that nobody traces: it stands for an eager one."""
    return is_fake(x) and get_proxy_mode() is None
