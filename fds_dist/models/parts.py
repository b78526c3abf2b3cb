"""Parts of several networks: the kind of an image's shape, initializations, and activation checkpointing.

Activation checkpointing computes a block's activations again in the backward pass instead of keeping them.
Double-backward products work through it; `torch.func`, and with it the method `jvp`, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Annotated

from pydantic import WrapValidator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fds_dist.common.kinds import fault, one_of, read_by, sizes


def image(smallest_side: int) -> WrapValidator:
    """The kind of a shape (channels, height, width) of images whose sides have at least ``smallest_side`` pixels."""

    def check(value: object) -> list[int]:
        shape = sizes(value)
        if len(shape) != 3 or min(shape[1:]) < smallest_side:
            expected = f"channels × height × width with sides of at least {smallest_side}"
            raise fault(f"{'×'.join(map(str, shape))} does not fit this model", expected)
        return shape

    return read_by(check)


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


INITIALIZATIONS: Mapping[str, Callable[[Tensor], object] | None] = {
    "default": None,
    "xavier": nn.init.xavier_normal_,
    "kaiming": _kaiming,
    "orthogonal": nn.init.orthogonal_,
}
Initialization = Annotated[str, one_of(INITIALIZATIONS)]


def initialize(model: nn.Module, name: str) -> None:
    """Redraws, in place, every weight of two or more dimensions, and sets its bias to zero.

    Normalization layers (one-dimensional weights) and parameters that are not called a weight, such as embeddings of
    positions, keep their values. ``default`` keeps all values.
    """
    redraw = INITIALIZATIONS[name]
    if redraw is None:
        return
    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        for key, parameter in parameters.items():
            if key.endswith("weight") and parameter.dim() >= 2:  # attention also has an in_proj_weight
                redraw(parameter)
                bias = parameters.get(f"{key.removesuffix('weight')}bias")
                if bias is not None:
                    nn.init.zeros_(bias)


def checkpoint_blocks(model: nn.Module) -> nn.Module:
    """Turns each block of `model` into a checkpointed one, in place; returns `model`.

    The blocks are the children of the outermost `nn.Sequential`s; of one that holds only `nn.Sequential`s, the children
    of those.
    """
    for block in chain.from_iterable(sequential.children() for sequential in _chains(model)):
        if any(True for _ in block.parameters()):  # a block without parameters keeps little
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign, assignment]
    return model


def _chains(module: nn.Module) -> list[nn.Sequential]:
    """The outermost sequentials that do not hold only sequentials."""
    if isinstance(module, nn.Sequential) and not all(isinstance(child, nn.Sequential) for child in module):
        return [module]
    return [sequential for child in module.children() for sequential in _chains(child)]
