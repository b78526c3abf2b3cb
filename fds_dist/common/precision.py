"""Floating-point types by their names in a config, and outputs in one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def in_dtype(output: Any, dtype: torch.dtype) -> Any:
    """A network's output (a tensor, or a tuple, mapping or registered object of them) with its floating-point tensors
    in ``dtype``."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, output)
