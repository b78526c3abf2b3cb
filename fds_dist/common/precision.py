"""Floating-point types by their names in a config, and outputs in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

DTYPES = {"float32": torch.float32, "float64": torch.float64}

AUTOCAST: dict[str | None, torch.dtype | None] = {None: None, "fp32": None, "bf16": torch.bfloat16}
"""The dtype of autocast by the values of `inner.precision`."""

HALVES = (torch.bfloat16, torch.float16)


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where it has half the bits, as PyTorch's own layers take means and variances."""
    return x.float() if x.dtype in HALVES else x


def in_dtype(output: Any, dtype: torch.dtype) -> Any:
    """A network's output (a tensor, or a tuple, mapping or registered object of them) with its floating-point tensors
    in ``dtype``."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, output)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, PyTorch makes new floating-point tensors in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
