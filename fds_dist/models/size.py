"""How large a network would be, told before it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fds_dist.common import limits
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.memory import free_bytes
from fds_dist.common.words import bytes_text

BYTES = 4
"""Of a weight in float32, as networks are built."""

TENSORS_PER_LAYER = 16
"""More than any layer of torchvision's networks has."""


def check_size(name: str, weights: int, layers: int) -> None:
    """Refuses a network that nobody could train, or whose weights alone this machine cannot hold.

    Args:
        name: of the network, as the user writes it.
        weights: all its trainable numbers.
        layers: those that lie behind one another.

    Raises:
        UserError: naming what it would need.
    """
    if layers > limits.DEPTH:
        problem = f"{name} would have {layers:,} layers and {weights:,} weights ({bytes_text(BYTES * weights)})"
        raise UserError(Fault("model", problem, f"a network of at most {limits.DEPTH:,} layers"))
    free = free_bytes(torch.device("cpu"))
    if BYTES * weights > free:
        problem = (
            f"{name} would need {bytes_text(BYTES * weights)} of memory for its {weights:,} weights, and as much again "
            f"for their gradient, each tensor of the optimizer's state and each tangent; {bytes_text(free)} are free"
        )
        raise UserError(Fault("model", problem, "a smaller network"))


@contextmanager
def size_checked(name: str) -> Iterator[None]:
    """Inside, a network is refused as by `check_size` as soon as its parts become too large or too many.

    A parameter is counted before numbers are drawn for it: until then it takes no memory.
    """
    weights, tensors, free = 0, 0, free_bytes(torch.device("cpu"))

    def count(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal weights, tensors
        weights += 0 if parameter is None else parameter.numel()
        tensors += 1
        if BYTES * weights > free or tensors > TENSORS_PER_LAYER * limits.DEPTH:
            size = f"{weights:,} weights ({bytes_text(BYTES * weights)}) in {tensors:,} tensors"
            problem = f"{name} would have more than {size}; {bytes_text(free)} are free"
            raise UserError(Fault("model", problem, "a smaller network"))

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
