"""What the ranks of the `data` axis send each other, as operators of PyTorch: so a traced step holds them as its nodes.

Shapes: P = ranks on the axis.

An operator knows its ranks by this one's place among so many; their group is the last that was made there. So a graph
keeps no group that has ended, and runs in the next one. Its argument `after` is not read: it is the result of what is
sent before. A compiler keeps the order of what depends on each other, and all ranks must send in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fds_dist.distributed.errors import rank_errors

Reference = Callable[[], dist.ProcessGroup | None]

# PyTorch 2.13 warns of the names that 2.11 has.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_LIBRARY = torch.library.Library("fds_dist", "DEF")
_REFERENCES: dict[tuple[int, int], Reference] = {}


def use(rank: int, size: int, reference: Reference) -> None:
    """From now on the group of `reference` is that of this process as `rank` of `size`."""
    _REFERENCES[rank, size] = reference


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


def _gather(part: Tensor, rank: int, size: int, after: Tensor | None = None) -> Tensor:
    parts = _gathered_like(part, rank, size)
    with rank_errors():
        _all_gather(_flat(parts), _flat(part), group=_REFERENCES[rank, size]())
    return parts


def _add(tensor: Tensor, rank: int, size: int, after: Tensor | None = None) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    with rank_errors():
        dist.all_reduce(total, group=_REFERENCES[rank, size]())
    return total


def _exchange(parts: Tensor, rank: int, size: int, after: Tensor | None = None) -> Tensor:
    received = _alike(parts, rank, size)
    with rank_errors():
        dist.all_to_all_single(received.view(-1), parts.view(-1), group=_REFERENCES[rank, size]())
    return received


for _name, _send, _result in (
    ("gather", _gather, _gathered_like),
    ("add", _add, _alike),
    ("exchange", _exchange, _alike),
):
    _LIBRARY.define(f"{_name}(Tensor tensor, int rank, int size, Tensor? after=None) -> Tensor")
    _LIBRARY.impl(_name, _send, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fds_dist::{_name}", _result)

_OPERATORS: Any = torch.ops.fds_dist


def gather(part: Tensor, rank: int, size: int) -> Tensor:
    """All ranks' `part` [...] in rank order [P, ...]; no derivative."""
    return _OPERATORS.gather(part.detach().contiguous(), rank, size)


def add(tensor: Tensor, rank: int, size: int) -> Tensor:
    """The sum of all ranks' tensors, added by the backend; no derivative."""
    return _OPERATORS.add(tensor.detach(), rank, size)


def exchange(parts: Tensor, rank: int, size: int) -> Tensor:
    """What all ranks have for this one, of their `parts` [P, ...], in rank order; no derivative."""
    return _OPERATORS.exchange(parts.detach().contiguous(), rank, size)


def in_order(nodes: Iterable[Any]) -> None:
    """Makes each of these operators among the `nodes` of a graph depend on the one before it."""
    operators = {getattr(_OPERATORS, name).default for name in ("gather", "add", "exchange")}
    before = None
    for node in nodes:
        if node.target in operators:
            node.update_kwarg("after", before)
            before = node
