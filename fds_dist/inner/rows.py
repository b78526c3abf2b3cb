"""Rows of tangents in groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Rows = slice | list[int]
"""Some rows: contiguous ones as a slice, whose tensors are views."""


def within(group: Rows, part: slice) -> Rows:
    """The `part` of a `group` of rows."""
    if isinstance(group, list):
        return group[part]
    return slice(group.start + part.start, min(group.start + part.stop, group.stop))


def chunks(rows: Sequence[int], size: int) -> Iterator[Rows]:
    """`rows` in groups of at most `size`; contiguous groups as slices, which are views and copy nothing."""
    for first in range(0, len(rows), size):
        group = list(rows[first : first + size])
        contiguous = group[-1] - group[0] + 1 == len(group)
        yield slice(group[0], group[-1] + 1) if contiguous else group
