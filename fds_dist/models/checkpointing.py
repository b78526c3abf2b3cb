"""Activation checkpointing: a block's activations are computed again in the backward pass instead of being kept.

Double-backward products work through it; `torch.func`, and with it the method `jvp`, does not.
"""

from __future__ import annotations

from functools import partial
from itertools import chain

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> nn.Module:
    """Makes each child of each outermost `nn.Sequential` of `model` (or, where these are all such themselves, of those)
    a checkpointed block, in place; returns `model`."""
    for block in chain.from_iterable(sequential.children() for sequential in _chains(model)):
        if any(True for _ in block.parameters()):  # others keep nothing worth a second pass
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign, assignment]
    return model


def _chains(module: nn.Module) -> list[nn.Sequential]:
    """The chains of blocks: sequentials, outermost first, that are more than a list of sequentials."""
    if isinstance(module, nn.Sequential) and not all(isinstance(child, nn.Sequential) for child in module):
        return [module]
    return [found for child in module.children() for found in _chains(child)]
