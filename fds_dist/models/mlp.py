"""Multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from fds_dist.common.kinds import Count, Sizes
from fds_dist.common.options import checked
from fds_dist.models.size import check_size


@checked("model")
def mlp(input_shape: Sizes, classes: Count, *, hidden: Sizes = (64, 64)) -> nn.Module:
    """Fully connected layers of widths ``hidden`` with ReLU between them; N×input_shape -> N×classes.

    An empty ``hidden`` makes a linear model. Raises `UserError` if ``hidden`` is not a list of widths.
    """
    widths = [math.prod(input_shape), *hidden]
    weights = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise([*widths, classes]))
    check_size("mlp", weights, len(widths))
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
