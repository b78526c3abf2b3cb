"""Forward passes under `torch.autocast`, so that derivatives of any order and kind can be taken of them.

PyTorch casts activations and weights where an operator is worth it (matrix products, convolutions), and leaves sums
and losses in float32. Two of its habits do not go with forward mode and are changed here, without another result:
the cache of cast weights, and normalizations of mixed dtypes, whose tangents have another dtype than their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fds_dist.common.precision import HALVES

_NORMS = frozenset({F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm})


@contextmanager
def autocast(device: torch.device, low: torch.dtype | None) -> Iterator[None]:
    """`torch.autocast` to the dtype `low` within the block; nothing where that is None.

    The cache is off: a cast weight from a pass without tangents would be met in a pass with them, and have none.
    """
    if low is None:
        yield
        return
    with torch.autocast(device.type, low, cache_enabled=False), _TangentsAsOutputs():
        yield


class _TangentsAsOutputs(TorchFunctionMode):
    """Gives the tangents of normalizations the dtype of their outputs, by a cast there and back.

    Of a half-precision input and float32 weights PyTorch (2.13) makes a half-precision output with a float32 tangent,
    which the next convolution or matrix product refuses.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _NORMS and isinstance(result, Tensor) and result.dtype in HALVES:
            return result.float().to(result.dtype)
        return result
