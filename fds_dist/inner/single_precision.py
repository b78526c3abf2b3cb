"""Finds float32 inside a user's network and loss that were asked to compute in float64.

Constants made in float32 and casts (`x.float()`, as in many normalizations) round what passes through them to 1e-7,
whatever the precision of the run: a comparison must not expect more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fds_dist.common.faults import user_line_here

LOW = (torch.float32, torch.float16, torch.bfloat16)


class _Watch(TorchDispatchMode):
    """Notes the first operator that makes a low-precision tensor from tensors in float64, or mixes the two."""

    def __init__(self) -> None:
        super().__init__()
        self.where = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.where and self._has(result, LOW) and self._has((args, kwargs), (torch.float64,)):
            dtype = next(leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.where = f"{str(dtype).removeprefix('torch.')}{user_line_here()}"
        return result

    @staticmethod
    def _has(tree: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
        return any(isinstance(leaf, Tensor) and leaf.dtype in dtypes for leaf in tree_leaves(tree))


def low_precision_inside(run: Callable[[], Any]) -> str:
    """What is computed below float64 while `run` runs in float64, and in which line; "" where nothing is.

    An error about dtypes, as `cross_entropy` raises for class weights in float32, counts too.
    """
    with _Watch() as watch:
        try:
            result = run()
        except (RuntimeError, TypeError, ValueError) as error:
            names = ("Float", "Double", "float", "double", "Half", "BFloat16", "dtype")
            if any(name in str(error) for name in names):
                return f"float32 (PyTorch says: {str(error).splitlines()[0]})"
            raise
    if watch.where:
        return watch.where
    return "float32 in the loss" if any(leaf.dtype in LOW for leaf in tree_leaves(result)) else ""
