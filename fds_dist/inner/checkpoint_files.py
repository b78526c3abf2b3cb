"""The files of a checkpoint within an outer step: the inner state and every tangent, for any number of ranks.

Shapes: D = weights, S = columns of a flat vector that a rank of the `data` axis keeps, R = tangents that a rank of the
`tangent` axis owns.

Each rank writes the tangents that it owns, and those at the first place of the `tangent` axis the primal state too. A
rank that goes on reads the elements of λ and the columns that it owns now, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.run import InnerState, Tangents


def tensors_to_write(ranks: Ranks, state: InnerState, tangents: Tangents) -> dict[str, Tensor]:
    """What this rank writes, by name, in host memory."""
    tensors = {"tangents.weights": tangents.weights}
    tensors |= _numbered("tangents.optimizer", tangents.optimizer)
    tensors |= {f"tangents.buffers.{name}": rows for name, rows in tangents.buffers.items()}
    if ranks.tangent_rank == 0:
        tensors |= {"weights": state.weights, **_numbered("optimizer", state.optimizer)}
        tensors |= {f"buffers.{name}": buffer for name, buffer in state.buffers.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_parts(
    folder: Path, files: Mapping[str, Mapping[str, Any]], ranks: Ranks, state: InnerState, tangents: Tangents
) -> tuple[InnerState, Tangents]:
    """The state and the tangents that `files` of `folder` hold, as this rank keeps them; `tangents` is filled in place.

    Args:
        files: name → `start` and `elements`, as in `_Part`.
        state: of the step that was kept, with tensors of the shapes, dtypes and device to read into.
    """
    with ExitStack() as stack:
        parts = [
            _Part(stack.enter_context(safe_open(folder / name, "pt")), file["start"], file["elements"])
            for name, file in files.items()
        ]
        parts.sort(key=lambda part: part.start)
        return _read(parts, ranks, state, tangents)


def _read(parts: Sequence[_Part], ranks: Ranks, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
    own = ranks.data.columns(len(state.weights))
    # Running statistics may be those of a part of the batch: this rank's, where it is cut as before.
    nearest = sorted(parts, key=lambda part: part.start != own.start)

    def mine(whole: Tensor) -> Tensor:
        return whole[own] if whole.dim() else whole

    def fill(like: Any, name: str, element: int | None = None) -> Any:
        tensors, spec = tree_flatten(like)
        found = [mine(_joined(parts, f"{name}.{index}", element)) for index in range(len(tensors))]
        return tree_unflatten([new.to(old) for new, old in zip(found, tensors, strict=True)], spec)

    buffers = {
        name: _joined(nearest, f"buffers.{name}", whole=True).to(buffer) for name, buffer in state.buffers.items()
    }
    weights = _joined(parts, "weights", whole=True).to(state.weights)
    for row, element in enumerate(tangents.elements):
        tangents.weights[row] = mine(_joined(parts, "tangents.weights", element))
        one = fill(state.optimizer, "tangents.optimizer", element)
        for tensor, new in zip(tree_flatten(tangents.optimizer)[0], tree_flatten(one)[0], strict=True):
            tensor[row] = new
        for name, rows in tangents.buffers.items():
            rows[row] = _joined(nearest, f"tangents.buffers.{name}", element, whole=True)
    optimizer = fill(state.optimizer, "optimizer")
    return InnerState(state.step, weights, optimizer, buffers), tangents


@dataclass(frozen=True)
class _Part:
    """What one rank wrote."""

    file: Any
    start: int
    """Of its columns."""
    elements: list[int]
    """[R] of λ, whose tangents are the rows of its tangents."""


def _numbered(name: str, tree: Any) -> dict[str, Tensor]:
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tree_flatten(tree)[0])}


def _joined(parts: Sequence[_Part], name: str, element: int | None = None, whole: bool = False) -> Tensor:
    """The tensor `name`, or its row of `element`, from the `parts` in order of their columns.

    A single number, and what every part has `whole`, comes from the first.
    """
    found = []
    for part in parts:
        if name not in part.file.keys() or (element is not None and element not in part.elements):  # noqa: SIM118
            continue
        if element is None:
            found.append(part.file.get_tensor(name))
        else:
            row = part.elements.index(element)
            found.append(part.file.get_slice(name)[row : row + 1][0])
    return found[0] if whole or not found[0].dim() else torch.cat(found)
