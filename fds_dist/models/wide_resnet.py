"""Wide residual networks WRN-depth-width (Zagoruyko & Komodakis, 2016, arXiv 1605.07146)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from torch import Tensor, nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, Ratio, Switch
from fds_dist.common.options import checked
from fds_dist.models.parts import checkpoint_blocks, image
from fds_dist.models.size import check_size


class _Block(nn.Module):
    """Pre-activation block: batch-norm, ReLU and 3×3 convolution, twice; the result is added to the input.

    If the shape changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        changes = fan_in != fan_out or stride != 1
        self.shortcut = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.bn1(x).relu()
        residual = self.conv2(self.dropout(self.bn2(self.conv1(activated)).relu()))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class _WideResNet(nn.Module):
    def __init__(self, channels: int, classes: int, blocks: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        groups, fan_in = [], 16
        for fan_out, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            group = [_Block(fan_in, fan_out, stride, dropout)]
            group += [_Block(fan_out, fan_out, 1, dropout) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(*group))
            fan_in = fan_out
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(fan_in)
        self.head = nn.Linear(fan_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.bn(self.groups(self.conv(x))).relu()
        return self.head(features.mean((2, 3)))


def wide_resnet_builder(depth: int, width: int) -> Callable[..., nn.Module]:
    """The function that builds WRN-``depth``-``width`` for images of side 8 or more; N×C×H×W -> N×classes.

    Three groups of (depth − 4) / 6 blocks with 16, 32 and 64 times ``width`` channels, then a global average.
    Convolutions use Kaiming's initialization. WRN-16-1 has 175,066 weights on color images with 10 classes.

    Raises `UserError` if there is no network of this depth or width.
    """
    faults = []
    if depth < 10 or (depth - 4) % 6:
        faults.append(Fault("model.name", f"depth {depth} is not 6n + 4", f"a depth such as {_nearest_depths(depth)}"))
    if width < 1:
        faults.append(Fault("model.name", f"width {width} is out of range", "a width of at least 1"))
    if faults:
        raise UserError(faults)

    @checked("model")
    def wide_resnet(
        input_shape: Annotated[Sequence[int], image(smallest_side=8)],
        classes: Count,
        *,
        dropout: Ratio = 0.0,
        checkpointing: Switch = False,
    ) -> nn.Module:
        check_size(f"wrn-{depth}-{width}", _weights(input_shape[0], classes, (depth - 4) // 6, width), depth)
        model = _WideResNet(input_shape[0], classes, (depth - 4) // 6, width, dropout)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return checkpoint_blocks(model) if checkpointing else model

    return wide_resnet


def _weights(channels: int, classes: int, blocks: int, width: int) -> int:
    """The number of weights, from the shapes of all layers."""
    total, fan_in = 9 * channels * 16, 16
    for fan_out in (16 * width, 32 * width, 64 * width):
        shortcut = 0 if fan_in == fan_out == 16 else fan_in * fan_out
        total += 2 * (fan_in + fan_out) + 9 * (fan_in + fan_out) * fan_out + shortcut
        total += (blocks - 1) * (4 * fan_out + 18 * fan_out**2)
        fan_in = fan_out
    return total + 2 * fan_in + (fan_in + 1) * classes


def _nearest_depths(depth: int) -> str:
    below = 4 + 6 * ((depth - 4) // 6)
    return "10" if below < 10 else f"{below} or {below + 6}"
