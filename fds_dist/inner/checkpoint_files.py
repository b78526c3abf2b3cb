"""The files of a checkpoint within an outer step: the inner state and every tangent, for any number of ranks.

Shapes: D = weights, S = columns of a flat vector that a rank of the `data` axis keeps, R = tangents that a rank of the
`tangent` axis owns.

Each rank writes the tangents that it owns, and those at the first place of the `tangent` axis the primal state too. A
rank that goes on reads the elements of λ and the columns that it owns now, whoever wrote them. The manifest names the
files with their checksums, and has one itself; every shape and dtype is compared before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import parse_json, write_text_atomic
from fds_dist.common.records import Count, Whole, from_values
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.run import InnerState, Tangents
from fds_dist.storage.checkpoints import changed_files, sealed, unsealed

MANIFEST = "manifest.json"

FileName = Annotated[str, Field(pattern=r"^rank-[0-9]+\.safetensors$")]
"""Of a file in the checkpoint's own folder."""


@dataclass(frozen=True)
class Part:
    """What one rank wrote."""

    sha256: str
    """Of the file."""
    start: Whole
    """Of its columns."""
    elements: list[Whole]
    """[R] of λ, whose tangents are the rows of its tangents."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds, and of which inner run."""

    run: dict[str, Any]
    """See `InnerCheckpoints.run`."""
    horizon: Count
    step: Count
    files: Annotated[dict[FileName, Part], Field(min_length=1)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Lets the checkpoint in `folder` count."""
    write_text_atomic(folder / MANIFEST, sealed(asdict(manifest)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder`.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is damaged.
    """
    content = (folder / MANIFEST).read_bytes()
    values = parse_json(content)
    of_earlier_version = isinstance(values, dict) and values.keys() == {"run", "horizon", "step", "files"}
    manifest = from_values(Manifest, values if of_earlier_version else unsealed(content))
    if manifest.step >= manifest.horizon:
        raise ValueError(f"step {manifest.step} of {manifest.horizon}")
    return manifest


def tensors_to_write(ranks: Ranks, state: InnerState, tangents: Tangents) -> dict[str, Tensor]:
    """What this rank writes, by name."""
    tensors = {"tangents.weights": tangents.weights, **numbered("tangents.optimizer", tangents.optimizer)}
    tensors |= {f"tangents.buffers.{name}": rows for name, rows in tangents.buffers.items()}
    if ranks.tangent_rank == 0:
        tensors |= {"weights": state.weights, **numbered("optimizer", state.optimizer)}
        tensors |= {f"buffers.{name}": buffer for name, buffer in state.buffers.items()}
    return tensors


def numbered(name: str, tree: Any) -> dict[str, Tensor]:
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tree_leaves(tree))}


def empty_like(state: InnerState, step: int) -> InnerState:
    """A state after `step` to be filled: with tensors of the shapes, dtypes and device of `state`'s."""
    empty = tree_map(torch.empty_like, (state.weights, state.optimizer, state.buffers))
    return InnerState(step, *empty)


def fill(folder: Path, manifest: Manifest, ranks: Ranks, width: int, targets: Sequence[Target]) -> str:
    """Fills `targets` in place with what a checkpoint holds, if nothing is wrong with it; returns what is wrong, or "".
    Called alike on all ranks, on which it ends alike.

    Args:
        width: D, the number of weights.

    Raises:
        UserError: a file that was whole cannot be read any more.
    """
    if changed := changed_files(folder, {name: part.sha256 for name, part in manifest.files.items()}, ranks):
        return ", ".join(changed)
    problem, pieces = "", list[_Piece]()
    with ExitStack() as stack:
        try:
            files = [_opened(folder / name, part, stack) for name, part in manifest.files.items()]
            checkpoint = Checkpoint(sorted(files, key=lambda file: file.part.start), ranks.data.columns(width))
            pieces = [piece for target in targets for piece in checkpoint.pieces(target)]
        except (OSError, SafetensorError, ValueError) as error:
            problem = str(error)
        if problem := next(filter(None, ranks.gather_objects(problem)), ""):
            return problem
        try:
            for piece in pieces:
                piece.tensor.copy_(piece.load())
        except (OSError, SafetensorError) as error:
            raise UserError(Fault("RUN_DIR", f"{folder} cannot be read: {error}", "a disk that can be read")) from None
    return ""


class _Open(NamedTuple):
    """An open file."""

    tensors: Any
    part: Part
    rows: dict[int, int]
    """Element of λ → its row."""


def _opened(path: Path, part: Part, stack: ExitStack) -> _Open:
    rows = {element: row for row, element in enumerate(part.elements)}
    return _Open(stack.enter_context(safe_open(path, "pt")), part, rows)


class _Piece(NamedTuple):
    """A stretch of a target, and what reads it."""

    tensor: Tensor
    load: Callable[[], Tensor]


class Target(NamedTuple):
    """A tensor to fill."""

    tensor: Tensor
    name: str
    """In the files."""
    element: int | None = None
    """Of λ, whose row it is; None: it is of the primal state."""
    whole: bool = False
    """Whether every file has all of it; otherwise a file has some of its columns, unless it is a single number."""

    def __str__(self) -> str:
        return self.name if self.element is None else f"{self.name} of element {self.element}"

    def is_in(self, file: _Open) -> bool:
        """Whether the file has it, or some of its columns."""
        is_there = self.name in file.tensors.keys()  # noqa: SIM118 (no mapping)
        return is_there and (self.element is None or self.element in file.rows)

    def width(self, file: _Open) -> int:
        """How many columns the file has."""
        return [0, *file.tensors.get_slice(self.name).get_shape()][-1]

    def piece(self, file: _Open, tensor: Tensor, columns: slice | None = None) -> _Piece:
        """What fills `tensor`, the whole target or some of its columns, from these `columns` of the file.

        Raises:
            ValueError: the file has it in another shape or dtype.
        """
        source = file.tensors.get_slice(self.name)
        shape = list(source.get_shape())
        rows = [] if self.element is None else [len(file.part.elements)]
        expected = [*rows, *(tensor.shape if columns is None else [self.width(file)])]
        if shape != expected:
            raise ValueError(f"{self} has the shape {shape}, not {expected}")
        dtype = (source[:0] if shape else file.tensors.get_tensor(self.name)).dtype
        if dtype != tensor.dtype:
            raise ValueError(f"{self} is of {dtype}, not {tensor.dtype}")
        index = [file.rows[self.element]] if self.element is not None else []
        index += [columns] if columns is not None else []
        return _Piece(tensor, lambda: source[tuple(index)] if index else file.tensors.get_tensor(self.name))


@dataclass(frozen=True)
class Checkpoint:
    """The open files of a checkpoint."""

    files: Sequence[_Open]
    """In the order of their columns."""
    columns: slice
    """That this rank keeps."""

    def pieces(self, target: Target) -> Iterator[_Piece]:
        """What fills the target. Compares shapes and dtypes, and reads no numbers.

        Raises:
            ValueError: something is missing or of another shape or dtype; the tensor is named.
            SafetensorError: a file is damaged.
        """
        files = [file for file in self.files if target.is_in(file)]
        if not files:
            raise ValueError(f"no file has {target}")
        if target.whole or not target.tensor.dim():
            # Running statistics may be those of a part of the batch: this rank's, where it is cut as before.
            nearest = min(files, key=lambda file: file.part.start != self.columns.start)
            yield target.piece(nearest, target.tensor)
            return
        filled, offset = self.columns.start, self.columns.start
        for file in files:
            start = file.part.start
            stop = min(start + target.width(file), self.columns.stop)
            if start <= filled < stop:
                tensor, columns = target.tensor[filled - offset : stop - offset], slice(filled - start, stop - start)
                yield target.piece(file, tensor, columns)
                filled = stop
        if filled != self.columns.stop:
            raise ValueError(f"no file has column {filled} of {target}")


def state_targets(state: InnerState, name: str = "", whole: bool = False) -> Iterator[Target]:
    """The tensors of a primal state, whose names begin with `name`.

    Args:
        whole: whether every file has the optimizer's tensors whole.
    """
    yield Target(state.weights, f"{name}weights", whole=True)
    for key, tensor in numbered(f"{name}optimizer", state.optimizer).items():
        yield Target(tensor, key, whole=whole)
    yield from buffer_targets(state, name)


def buffer_targets(state: InnerState, name: str = "") -> Iterator[Target]:
    """The buffers of a primal state, whose names begin with `name`."""
    yield from (Target(buffer, f"{name}buffers.{key}", whole=True) for key, buffer in state.buffers.items())


def tangent_targets(tangents: Tangents) -> Iterator[Target]:
    """The tensors of this rank's tangents."""
    by_columns = {"tangents.weights": tangents.weights, **numbered("tangents.optimizer", tangents.optimizer)}
    for row, element in enumerate(tangents.elements):
        yield from (Target(rows[row], name, element) for name, rows in by_columns.items())
        for name, rows in tangents.buffers.items():
            yield Target(rows[row], f"tangents.buffers.{name}", element, whole=True)
