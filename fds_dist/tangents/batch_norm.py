"""Batch-norm in a network whose batch may be split over processes, and whose running statistics follow one run alone.

Shapes: C = channels of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fds_dist.common.batch import WHOLE

Statistics = tuple[tuple[Tensor, Tensor], ...]
"""Mean and unbiased variance [C] of the batch, per batch-norm call of one forward pass."""


class RunningStatistics:
    """Batch-norm whose running statistics follow the primal run alone.

    `torch.func` cannot trace an update in place, and a second forward pass (of another tangent, or of activation
    checkpointing within a backward pass) must not update twice. So `track_running_stats` of the layers is off from
    here on (evaluation still reads what there is), what they saw is recorded, and `update` applies it once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.share = WHOLE
        found = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self.layers = [layer for layer in found if layer.track_running_stats]
        self._seen: list[tuple[int, Tensor, Tensor]] | None = None
        for layer in found:
            index = self.layers.index(layer) if layer.track_running_stats else None
            layer.track_running_stats = False
            layer.forward = self._forward_of(layer, index)  # type: ignore[method-assign, assignment]

    def _forward_of(self, layer: _BatchNorm, index: int | None) -> Callable[[Tensor], Tensor]:
        """The layer's forward pass: recorded if it has an index, over the whole batch where that is split."""
        own = layer.forward
        splits = type(layer).forward is _BatchNorm.forward

        def forward(x: Tensor) -> Tensor:
            total = self.share.total if splits and (layer.training or layer.running_mean is None) else None
            if total is None:
                self._record(layer, index, lambda: _moments(x.detach()))
                return own(x)
            mean, variance, count = _whole_moments(x, self.share.fraction, total)
            unbiased = count / (count - 1)
            self._record(layer, index, lambda: (mean.detach(), variance.detach() * unbiased))
            return _normalized(layer, x, mean, variance)

        return forward

    def _record(self, layer: _BatchNorm, index: int | None, moments: Callable[[], tuple[Tensor, Tensor]]) -> None:
        if layer.training and index is not None and self._seen is not None:
            self._seen.append((index, *moments()))

    @contextmanager
    def recorded(self) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
        """Yields a list that fills with what the layers see inside."""
        self._seen = seen = []
        try:
            yield seen
        finally:
            self._seen = None

    @torch.no_grad()
    def average(self, add: Callable[[Tensor], Tensor], parts: int) -> None:
        """Makes the running statistics the means over `parts` networks, where they saw different parts of batches.

        `add` sums a tensor over them. Where batch-norm is over whole batches they are the same already.
        """
        for layer in self.layers if parts > 1 else ():
            for running in (layer.running_mean, layer.running_var):
                if running is not None:
                    running.copy_(add(running) / parts)

    @torch.no_grad()
    def update(self, order: Sequence[int], statistics: Statistics) -> None:
        """Moves the running statistics as `nn.BatchNorm` does; `order` names the layer of each entry."""
        for index, (mean, variance) in zip(order, statistics, strict=True):
            layer = self.layers[index]
            if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
                continue
            layer.num_batches_tracked.add_(1)
            batches = layer.num_batches_tracked.to(layer.running_mean)
            share = 1.0 / batches if layer.momentum is None else layer.momentum
            layer.running_mean += share * (mean.to(layer.running_mean) - layer.running_mean)
            layer.running_var += share * (variance.to(layer.running_var) - layer.running_var)


def _sample_axes(x: Tensor) -> list[int]:
    """All axes but the channels', which is the second."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance [C] of `x` [B, C, ...]."""
    variance, mean = torch.var_mean(x, _sample_axes(x))
    return mean, variance


def _whole_moments(x: Tensor, fraction: float, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance [C] of the batch that `x` [B, C, ...] is a `fraction` of, and of how many values.

    The mean first and then the variance about it: in one pass, large means would cancel.
    """
    axes = _sample_axes(x)
    count = round(x.numel() / x.shape[1] / fraction)
    mean = total(x.sum(axes)) / count
    centred = x - _per_channel(mean, x)
    return mean, total((centred * centred).sum(axes)) / count, count


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`values` [C] in a shape that broadcasts over `x` [B, C, ...]."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _normalized(layer: _BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`x` [B, C, ...] normalized by these moments [C], with the layer's weight and bias."""
    y = (x - _per_channel(mean, x)) * _per_channel((variance + layer.eps).rsqrt(), x)
    if layer.weight is not None:
        y = y * _per_channel(layer.weight, x)
    return y if layer.bias is None else y + _per_channel(layer.bias, x)
