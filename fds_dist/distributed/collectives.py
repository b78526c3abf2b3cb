"""What crosses the `data` axis within a network and a loss, with derivatives of any order, forward and reverse.

Each function has its adjoint beside it: a sum and a sum, rows gathered and rows cut, a copy and a share.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.autograd import Function

_InDims = tuple[int, None, None]


class Axis(Protocol):
    """The ranks that take part."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, tensor: Tensor) -> Tensor: ...

    def all_parts(self, part: Tensor) -> Tensor: ...

    def sum_of_own(self, parts: Tensor) -> Tensor: ...

    def all_rows(self, part: Tensor, sizes: tuple[int, ...]) -> Tensor: ...


class _Sum(Function):
    """A sum over ranks, each of which uses the result in its own way: its adjoint is the sum of the adjoints."""

    @staticmethod
    def forward(tensor: Tensor, axis: Axis) -> Tensor:
        return axis.sum(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis], output: Tensor) -> None:
        ctx.axis = inputs[1]

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return sum_of_parts(adjoint, ctx.axis), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return sum_of_parts(tangent, ctx.axis)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], tensor: Tensor, axis: Axis) -> tuple[Tensor, int | None]:  # type: ignore[override]
        return sum_of_parts(tensor, axis), in_dims[0]


class _GatherParts(Function):
    """All ranks' tensors, each rank of which uses them in its own way: its adjoint is the sum of those of its own."""

    @staticmethod
    def forward(part: Tensor, axis: Axis) -> Tensor:
        return axis.all_parts(part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis], output: Tensor) -> None:
        ctx.axis = inputs[1]

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return sum_of_own(adjoint, ctx.axis), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return gather_parts(tangent, ctx.axis)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], part: Tensor, axis: Axis) -> tuple[Tensor, int]:  # type: ignore[override]
        return gather_parts(part, axis), in_dims[0] + 1


class _SumOfOwn(Function):
    """The sum of what all ranks have for this rank: the adjoint of `_GatherParts`, and the reverse."""

    @staticmethod
    def forward(parts: Tensor, axis: Axis) -> Tensor:
        return axis.sum_of_own(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis], output: Tensor) -> None:
        ctx.axis = inputs[1]

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gather_parts(adjoint, ctx.axis), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return sum_of_own(tangent, ctx.axis)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], parts: Tensor, axis: Axis) -> tuple[Tensor, int]:  # type: ignore[override]
        return sum_of_own(parts.movedim(in_dims[0], -1), axis), parts.dim() - 2


class _GatherRows(Function):
    """All ranks' rows, for use alike on all ranks; its adjoint, the same everywhere, is cut into the ranks' rows."""

    @staticmethod
    def forward(part: Tensor, axis: Axis, sizes: tuple[int, ...]) -> Tensor:
        return axis.all_rows(part, sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis, tuple[int, ...]], output: Tensor) -> None:
        _, ctx.axis, ctx.sizes = inputs

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return own_rows(adjoint, ctx.axis, ctx.sizes), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # type: ignore[override]
        return gather_rows(tangent, ctx.axis, ctx.sizes)

    @staticmethod
    def vmap(info: Any, in_dims: _InDims, part: Tensor, axis: Axis, sizes: tuple[int, ...]) -> tuple[Tensor, int]:  # type: ignore[override]
        return gather_rows(part.movedim(in_dims[0], -1), axis, sizes), part.dim() - 1


class _OwnRows(Function):
    """This rank's rows of a tensor that is the same on all ranks: the adjoint of `_GatherRows`, and the reverse."""

    @staticmethod
    def forward(whole: Tensor, axis: Axis, sizes: tuple[int, ...]) -> Tensor:
        return whole.split(sizes)[axis.rank].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis, tuple[int, ...]], output: Tensor) -> None:
        _, ctx.axis, ctx.sizes = inputs

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gather_rows(adjoint, ctx.axis, ctx.sizes), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # type: ignore[override]
        return own_rows(tangent, ctx.axis, ctx.sizes)

    @staticmethod
    def vmap(info: Any, in_dims: _InDims, whole: Tensor, axis: Axis, sizes: tuple[int, ...]) -> tuple[Tensor, int]:  # type: ignore[override]
        return own_rows(whole.movedim(in_dims[0], -1), axis, sizes), whole.dim() - 1


class _Replicate(Function):
    """What all ranks have computed alike, for use alike on all of them: each takes its share of the adjoint."""

    @staticmethod
    def forward(tensor: Tensor, axis: Axis) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis], output: Tensor) -> None:
        ctx.axis = inputs[1]

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return own_share(adjoint, ctx.axis), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return tangent.view_as(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], tensor: Tensor, axis: Axis) -> tuple[Tensor, int]:  # type: ignore[override]
        return replicate(tensor, axis), in_dims[0]


class _OwnShare(Function):
    """An equal share of a tensor that is the same on all ranks: the adjoint of `_Replicate`, and the reverse."""

    @staticmethod
    def forward(whole: Tensor, axis: Axis) -> Tensor:
        return whole / axis.size

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Axis], output: Tensor) -> None:
        ctx.axis = inputs[1]

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return replicate(adjoint, ctx.axis), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return own_share(tangent, ctx.axis)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], whole: Tensor, axis: Axis) -> tuple[Tensor, int]:  # type: ignore[override]
        return own_share(whole, axis), in_dims[0]


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:  # type: ignore[override]
        ctx.axis = axis
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.axis.sum(adjoint), None


class _Collect(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:  # type: ignore[override]
        return axis.sum(tensor)

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return adjoint, None


def sum_of_parts(tensor: Tensor, axis: Axis) -> Tensor:
    """The sum of all ranks' parts, each of which goes on in its own way."""
    result: Any = _Sum.apply(tensor, axis)
    return result


def spread(tensor: Tensor, axis: Axis) -> Tensor:
    """A tensor that is the same on all ranks, for use in each rank's own part."""
    result: Any = _Spread.apply(tensor, axis)
    return result


def collect(tensor: Tensor, axis: Axis) -> Tensor:
    """The sum of all ranks' parts, for use alike on all of them."""
    result: Any = _Collect.apply(tensor, axis)
    return result


def gather_parts(part: Tensor, axis: Axis) -> Tensor:
    """All ranks' tensors, stacked in rank order, each rank of which goes on in its own way."""
    result: Any = _GatherParts.apply(part, axis)
    return result


def sum_of_own(parts: Tensor, axis: Axis) -> Tensor:
    """The sum of what all ranks have for this rank, of a stack in rank order."""
    result: Any = _SumOfOwn.apply(parts, axis)
    return result


def gather_rows(part: Tensor, axis: Axis, sizes: tuple[int, ...]) -> Tensor:
    """All ranks' rows, for use alike on all of them."""
    result: Any = _GatherRows.apply(part, axis, sizes)
    return result


def own_rows(whole: Tensor, axis: Axis, sizes: tuple[int, ...]) -> Tensor:
    """This rank's rows of a tensor that is the same on all ranks."""
    result: Any = _OwnRows.apply(whole, axis, sizes)
    return result


def replicate(tensor: Tensor, axis: Axis) -> Tensor:
    """What all ranks have computed alike, for use alike on all of them."""
    result: Any = _Replicate.apply(tensor, axis)
    return result


def own_share(whole: Tensor, axis: Axis) -> Tensor:
    """An equal share of a tensor that is the same on all ranks."""
    result: Any = _OwnShare.apply(whole, axis)
    return result
