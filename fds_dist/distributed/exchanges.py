"""What the ranks of the `data` axis send each other, as operators of PyTorch: so a traced step holds them as its nodes.

Shapes: P = ranks on the axis.

An operator knows its ranks by this one's place among so many; their group is the last that was made there. So a graph
keeps no group that has ended, and runs in the next one. Its argument `after` is not read: it is the result of what is
sent before. A compiler keeps the order of what depends on each other, and all ranks must send in the same order.

An operator waits. Where no step is traced, `send` lets the ranks compute while the same is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from fds_dist.distributed.errors import rank_errors
from fds_dist.distributed.in_flight import Sent, arrived

Reference = Callable[[], dist.ProcessGroup | None]

Begun = tuple[Tensor, dist.Work | None]
"""What is received, and what to wait for before it is there; None where all have waited."""

# PyTorch 2.13 warns of the names that 2.11 has.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_LIBRARY = torch.library.Library("fds_dist", "DEF")
_REFERENCES: dict[tuple[int, int], Reference] = {}
_UNDER_WAY = WeakSet[Sent[Tensor]]()
_rehearsing = False

Send = Callable[[str, Tensor, int, int], Sent[Tensor]]
"""(name of an operator, what this rank sends, its place, among so many) → the result."""


def use(rank: int, size: int, reference: Reference) -> None:
    """From now on the group of `reference` is that of this process as `rank` of `size`."""
    _REFERENCES[rank, size] = reference


@contextmanager
def rehearsed() -> Iterator[None]:
    """Inside, nothing is sent: what this rank has stands in the place of what the others would send.

    So a rank learns alone, with tensors of the right shapes, what a step takes, and whether it can be taken: one that
    stops in the midst of a real step leaves the others waiting for what it does not send.
    """
    global _rehearsing
    before, _rehearsing = _rehearsing, True
    try:
        yield
    finally:
        _rehearsing = before


def as_numbers(tensor: Tensor) -> Tensor:
    """The same memory, of a dtype that every backend sends."""
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _flat(tensor: Tensor) -> Tensor:
    return as_numbers(tensor).view(-1)


def _gathered_like(part: Tensor, rank: int, size: int, after: Tensor | None = None) -> Tensor:
    return part.new_empty(size, *part.shape)


def _alike(tensor: Tensor, rank: int, size: int, after: Tensor | None = None) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _gather(part: Tensor, rank: int, size: int, later: bool) -> Begun:
    parts = _gathered_like(part, rank, size)
    return parts, _all_gather(_flat(parts), _flat(part.contiguous()), group=_REFERENCES[rank, size](), async_op=later)


def _add(tensor: Tensor, rank: int, size: int, later: bool) -> Begun:
    total = tensor.clone(memory_format=torch.contiguous_format)
    return total, dist.all_reduce(total, group=_REFERENCES[rank, size](), async_op=later)


def _exchange(parts: Tensor, rank: int, size: int, later: bool) -> Begun:
    received, own = _alike(parts, rank, size), parts.contiguous()
    group = _REFERENCES[rank, size]()
    return received, dist.all_to_all_single(received.view(-1), own.view(-1), group=group, async_op=later)


_BEGIN: dict[str, Callable[..., Begun]] = {"gather": _gather, "add": _add, "exchange": _exchange}
_LIKE: dict[str, Callable[..., Tensor]] = {"gather": _gathered_like, "add": _alike, "exchange": _alike}
"""What has the shape of their results."""


def _begun(name: str, tensor: Tensor, rank: int, size: int, later: bool) -> Begun:
    if _rehearsing:
        return _LIKE[name](tensor, rank, size).copy_(tensor), None
    with rank_errors():
        return _BEGIN[name](tensor, rank, size, later)


def _now(name: str, tensor: Tensor, rank: int, size: int, after: Tensor | None = None) -> Tensor:
    return _begun(name, tensor, rank, size, later=False)[0]


for _name in _BEGIN:
    _LIBRARY.define(f"{_name}(Tensor tensor, int rank, int size, Tensor? after=None) -> Tensor")
    _LIBRARY.impl(_name, partial(_now, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fds_dist::{_name}", _LIKE[_name])

_OPERATORS: Any = torch.ops.fds_dist


def received(name: str, tensor: Tensor, rank: int, size: int) -> Tensor:
    """What the operator of this name gives; no derivative.

    `gather`: all ranks' tensors [...] in rank order [P, ...]. `add`: their sum, added by the backend. `exchange`: what
    all ranks have for this one, of their tensors [P, ...], in rank order.
    """
    return getattr(_OPERATORS, name)(tensor.detach().contiguous(), rank, size)


def sent(name: str, tensor: Tensor, rank: int, size: int) -> Sent[Tensor]:
    """The same, as `send` gives it."""
    return arrived(received(name, tensor, rank, size))


def send(name: str, tensor: Tensor, rank: int, size: int) -> Sent[Tensor]:
    """What the operator of this name would give, under way when this returns. No operator: it cannot be traced."""
    sent = Sent(partial(_received, *_begun(name, tensor.detach(), rank, size, later=True)))
    _UNDER_WAY.add(sent)
    return sent


def let_go() -> None:
    """Drops what is under way, as it is after an error: what an operation holds of its group outlives the group, and
    the frames of an error's traceback may hold the operation."""
    for sent in list(_UNDER_WAY):
        sent.drop()


def _received(result: Tensor, work: dist.Work | None) -> Tensor:
    if work is not None:
        with rank_errors():
            work.wait()
    return result


def in_order(nodes: Iterable[Any]) -> None:
    """Makes each of these operators among the `nodes` of a graph depend on the one before it."""
    operators = {getattr(_OPERATORS, name).default for name in _BEGIN}
    before = None
    for node in nodes:
        if node.target in operators:
            node.update_kwarg("after", before)
            before = node
