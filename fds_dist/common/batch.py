"""A batch of a task, checked, and the part of it that one process sees where batches are split over processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.common.faults import Fault, UserError

Batch = tuple[Tensor, Tensor]
"""Inputs [B, ...] and targets [B, ...]."""


@dataclass(frozen=True)
class Share:
    """How the part of a batch that this process sees belongs to the whole."""

    fraction: float = 1.0
    """Of the batch's samples."""
    total: Callable[[Tensor], Tensor] | None = None
    """Sum over all parts of the batch, differentiable twice: batch-norm then uses the statistics of the whole batch.
    None: those of this part."""
    gather: Callable[[Tensor], Tensor] | None = None
    """The outputs of the whole batch from those of this part, differentiable twice. None: this part is the whole."""


WHOLE = Share()


@dataclass(frozen=True)
class Part:
    """What one process sees of a batch: its part of the inputs, and all targets, since every process computes the loss
    of the whole batch."""

    inputs: Tensor  # [b, ...]
    targets: Tensor  # [B, ...]
    share: Share = WHOLE


def map_tensors(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    """A network's output with `function` of each of its tensors: a tensor, a dataclass, or any pytree of them.

    Raises:
        UserError: it is or holds another object, whose tensors cannot be found; names `mesh.data`, which needs them.
    """

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if is_dataclass(leaf) and not isinstance(leaf, type):
            parts = {each.name: map_tensors(function, getattr(leaf, each.name)) for each in fields(leaf) if each.init}
            return replace(leaf, **parts)
        if leaf is None or isinstance(leaf, (bool, int, float, str)):
            return leaf
        problem = f"the network's output is or holds a {type(leaf).__name__}, whose tensors cannot be gathered"
        expected = "a tensor, or a tuple, mapping or dataclass of tensors; or mesh.data=1"
        raise UserError(Fault("mesh.data", problem, expected))

    return tree_map(mapped, output)


def checked_batch(batch: object, source: str) -> Batch:
    """Returns `batch` if it is a pair of tensors.

    Raises:
        UserError: it is not; names `source`, the task's function that gave it.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    kind = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        kind += f" of {', '.join(type(part).__name__ for part in batch)}" if batch else " without parts"
    raise UserError(Fault(f"task.{source}", f"gave a {kind}", "pairs (x, y) of tensors"))
