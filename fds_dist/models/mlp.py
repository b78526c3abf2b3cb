"""Multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import is_count


def mlp(input_shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """Fully connected layers of widths ``hidden`` with ReLU between them; N×input_shape -> N×classes.

    An empty ``hidden`` makes a linear model. Raises `UserError` where ``hidden`` is not a list of widths.
    """
    if not isinstance(hidden, (list, tuple)) or not all(map(is_count, hidden)):
        raise UserError(Fault("model.hidden", f"{hidden!r} is not valid", "a list of whole numbers of at least 1"))
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
