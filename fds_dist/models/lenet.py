"""LeNet-5 in its present-day form (LeCun et al., 1998, with ReLU and max-pooling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import nn

from fds_dist.common.kinds import Count
from fds_dist.common.options import checked
from fds_dist.models.parts import image


@checked("model")
def lenet(input_shape: Annotated[Sequence[int], image(smallest_side=4)], classes: Count) -> nn.Module:
    """Two 5×5 convolutions of 6 and 16 channels, then 120, 84 and ``classes`` units; N×C×H×W -> N×classes.

    62,006 weights on 3×32×32 images with 10 classes. If a side is under 28, the convolutions pad by 2 to keep the
    size. Raises `UserError` if the shape is not that of an image, or if a side is under 4.
    """
    channels, height, width = input_shape  # the two poolings reduce 4 pixels to one
    padding = 2 if min(height, width) < 28 else 0

    def after_convolutions(side: int) -> int:
        for _ in range(2):
            side = (side + 2 * padding - 4) // 2
        return side

    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * after_convolutions(height) * after_convolutions(width), 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )
