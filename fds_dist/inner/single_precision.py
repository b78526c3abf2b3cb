"""Finds float32 inside a user's network and loss that were asked to compute in float64, and raises it.

Constants made in float32 and casts (`x.float()`, as in many normalizations) round what passes through them to 1e-7,
whatever the precision of the run. Differences with small steps then show rounding alone, so comparisons are made with
the casts raised to float64; where that is not possible, they must not expect more than float32 gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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


@contextmanager
def float64_inside(run: Callable[[], Any]) -> Iterator[tuple[str, bool]]:
    """Within the block code that computes below float64 computes in float64, if `run` does not do so by itself.

    Yields:
        What `run` computes below float64 by itself, see `low_precision_inside`; whether all is float64 in the block.
    """
    where = low_precision_inside(run)
    with InFloat64() if where else nullcontext():
        yield where, not (where and low_precision_inside(run))


class InFloat64(TorchFunctionMode):
    """Within the block each function of `torch` that gets a float64 tensor computes in float64.

    Floating-point tensors of a lower precision beside it, and the lower dtypes that the function is asked for, become
    float64. What is written in place keeps its dtype.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func` with all of its floating-point arguments in float64, where one of them is."""
        kwargs = kwargs or {}
        if not any(map(_is_float64, tree_leaves((args, kwargs)))) or _keeps_dtypes(func, kwargs):
            return func(*args, **kwargs)
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0]
        args, kwargs = tree_map(_raised, (args, kwargs))
        return func(*args, **kwargs)


def _keeps_dtypes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether `func` writes to one of its arguments, or asks what kind of tensors they are."""
    name = getattr(func, "__name__", "")
    in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    return in_place or "out" in kwargs or name in ("__set__", "__setitem__", "_has_compatible_shallow_copy_type")


def _is_float64(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.float64


def _raised(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.double() if leaf.dtype in LOW else leaf
    return torch.float64 if leaf in LOW else leaf
