"""Rows of tangents in groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fds_dist.common.transfer import to_device

Rows = slice | Tensor
"""Some rows: contiguous ones as a slice, whose tensors are views; others as their numbers on the device."""

NO_ROWS = slice(0, 0)


def count_of(group: Rows) -> int:
    """How many rows there are in a group."""
    return len(group) if isinstance(group, Tensor) else group.stop - group.start


class RowGroups:
    """Cuts rows into groups. The numbers of a group are sent to the device once, not at each step that takes them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sent: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, rows: Sequence[int], sizes: Iterable[int]) -> Iterator[Rows]:
        """`rows` in groups of such sizes; the last one has what is left."""
        first, size = 0, iter(sizes)
        while first < len(rows):
            group = tuple(rows[first : (first := first + next(size))])
            yield slice(group[0], group[-1] + 1) if group[-1] - group[0] + 1 == len(group) else self._numbers(group)

    def _numbers(self, group: tuple[int, ...]) -> Tensor:
        if group not in self._sent:
            self._sent[group] = to_device(torch.tensor(group), self._device)
        return self._sent[group]
