"""Kinks held: activations and maxima stay on the side on which they stand, while the weights are moved a little.

A difference of gradients over ±ε that crosses the kink of a ReLU has its jump divided by 2ε in it. Of the thousands of
activations of a step some always cross, and over many steps tangents grow without bound. Exact products know no such
jumps: they are derivatives on the piece on which each activation stands. Held on these pieces, a difference is one of a
smooth function, and tends to the exact product.

A step notes its decisions (which side of a kink, which of several values is the largest, how comparisons end); further
steps repeat them. What is known are PyTorch's functions below, called from Python; a kink inside a custom kernel or a
loss of PyTorch's own is not seen. What `torch.compile` has compiled runs uncompiled in such a step, or the decisions
of one step would be compiled into all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only


class Kinks:
    """The decisions of one step, in the order in which they are taken."""

    def __init__(self) -> None:
        self._noted: list[Any] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """The context of the step whose decisions are noted; it computes what it would compute without."""
        with _uncompiled(), _Noting(self._noted):
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """The context of a step that repeats these decisions."""
        with _uncompiled(), _Holding(iter(self._noted)):
            yield


@contextmanager
def _uncompiled() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import would take seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _Noting(TorchFunctionMode):
    def __init__(self, decisions: list[Any]) -> None:
        super().__init__()
        self._decisions = decisions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PIECES and _is_float(args):
            with torch.no_grad():  # before the call, which may change its input in place
                self._decisions.append(PIECES[func][0](*args, **kwargs))
        result = func(*args, **kwargs)
        if func in DECISIONS and _is_float(args):
            self._decisions.append(tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), result))
        return result


class _Holding(TorchFunctionMode):
    def __init__(self, decisions: Iterator[Any]) -> None:
        super().__init__()
        self._decisions = decisions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DECISIONS and _is_float(args):
            return tree_map_only(Tensor, torch.clone, next(self._decisions))
        if func in PIECES and _is_float(args):
            result = PIECES[func][1](next(self._decisions), *args, **kwargs)
            return args[0].copy_(result) if kwargs.get("inplace") or func in IN_PLACE else result
        return func(*args, **kwargs)


def _is_float(args: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_flatten(args)[0])


def _named(*names: str) -> list[Callable[..., Any]]:
    """The functions of these names, as `torch`, `torch.Tensor` and `torch.nn.functional` have them."""
    return [getattr(home, name) for home in (torch, Tensor, F) for name in names if hasattr(home, name)]


DECISIONS = frozenset(
    _named(
        *("gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal", "not_equal"),
        *("__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__"),
        *("argmax", "argmin", "argsort", "sign", "round", "floor", "ceil", "bucketize", "searchsorted"),
    )
)
"""Functions that are constant between their jumps."""


def _between(x: Tensor, least: Any, most: Any) -> tuple[Tensor | None, Tensor | None]:
    return None if least is None else x >= least, None if most is None else x <= most


def _clamped(inside: tuple[Tensor | None, Tensor | None], x: Tensor, least: Any, most: Any) -> Tensor:
    above, below = inside
    x = x if above is None else torch.where(above, x, least)
    return x if below is None else torch.where(below, x, most)


def _clamp(sides: Any, x: Tensor, min: Any = None, max: Any = None, **_: Any) -> Tensor:
    return _clamped(sides, x, min, max)


def _hardtanh(sides: Any, x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return _clamped(sides, x, min_val, max_val)


def _elu(positive: Tensor, x: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return torch.where(positive, x, alpha * torch.expm1(torch.where(positive, 0.0, x)))  # no overflow


def _selu(positive: Tensor, x: Tensor, inplace: bool = False) -> Tensor:
    return 1.0507009873554805 * _elu(positive, x, 1.6732632423543772)


def _leaky(positive: Tensor, x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return torch.where(positive, x, negative_slope * x)


def _prelu(positive: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    channels = weight if x.dim() < 2 else weight.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(positive, x, channels * x)


def _positive(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x > 0


def _six(x: Tensor, inplace: bool = False) -> Any:
    return _between(x, 0.0, 6.0)


def _six_of_shifted(x: Tensor, inplace: bool = False) -> Any:
    return _between(x + 3, 0.0, 6.0)


def _first_share(x: Tensor, y: Tensor, sign: int) -> Tensor:
    """1 where x is the larger (`sign` −1: the smaller), 0 where y is, ½ at a tie, which shares out the gradient."""
    return (torch.sign(sign * (x - y)) + 1) / 2


def _larger(share: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return share * x + (1 - share) * y


def _pool(largest: Callable[..., Any], axes: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """For a maximum over windows; `largest` also gives the places of the maxima."""

    def places(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return largest(x, *args, **{**kwargs, "return_indices": True})[1]

    def taken(indices: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.flatten(-axes).gather(-1, indices.flatten(-axes)).view(indices.shape)

    return places, taken


def _pairs() -> Iterator[tuple[Callable[..., Any], tuple[Callable[..., Any], Callable[..., Any]]]]:
    for func in _named("relu", "relu_"):
        yield func, (_positive, lambda positive, x, inplace=False: torch.where(positive, x, 0.0))
    for names, held in ((("leaky_relu", "leaky_relu_"), _leaky), (("elu", "elu_"), _elu), (("selu", "selu_"), _selu)):
        yield from ((func, (_positive, held)) for func in _named(*names))
    yield from ((func, (_positive, _prelu)) for func in _named("prelu"))
    yield F.relu6, (_six, lambda sides, x, inplace=False: _clamped(sides, x, 0.0, 6.0))
    yield F.hardsigmoid, (_six_of_shifted, lambda sides, x, inplace=False: _clamped(sides, x + 3, 0.0, 6.0) / 6)
    yield F.hardswish, (_six_of_shifted, lambda sides, x, inplace=False: x * _clamped(sides, x + 3, 0.0, 6.0) / 6)
    for func in (F.hardtanh, F.hardtanh_):
        yield func, (lambda x, min_val=-1.0, max_val=1.0, inplace=False: _between(x, min_val, max_val), _hardtanh)
    for func in _named("clamp", "clamp_", "clip", "clip_"):
        yield func, (lambda x, min=None, max=None, **_: _between(x, min, max), _clamp)
    for func in _named("clamp_min", "clamp_min_"):
        yield (
            func,
            (lambda x, min, **_: _between(x, min, None), lambda sides, x, min, **_: _clamped(sides, x, min, None)),
        )
    for func in _named("abs", "abs_", "absolute", "__abs__"):
        yield func, (lambda x: x.sign(), lambda sign, x: sign * x)
    for sign, names in ((1, ("maximum",)), (-1, ("minimum",))):
        yield from ((func, (lambda x, y, sign=sign: _first_share(x, y, sign), _larger)) for func in _named(*names))
    for axes, pools in enumerate((("max_pool1d",), ("max_pool2d",), ("max_pool3d",)), start=1):
        for name in (*pools, f"adaptive_{pools[0]}"):
            yield getattr(F, name), _pool(getattr(F, name), axes)


PIECES = dict(_pairs())
"""By function: what is noted of its arguments, and its value from that and the arguments."""

IN_PLACE = frozenset(func for func in PIECES if getattr(func, "__name__", "").endswith("_"))
