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
from dataclasses import asdict, dataclass, replace
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
    """What this rank writes, by name, in host memory."""
    tensors = {"tangents.weights": tangents.weights, **_numbered("tangents.optimizer", tangents.optimizer)}
    tensors |= {f"tangents.buffers.{name}": rows for name, rows in tangents.buffers.items()}
    if ranks.tangent_rank == 0:
        tensors |= {"weights": state.weights, **_numbered("optimizer", state.optimizer)}
        tensors |= {f"buffers.{name}": buffer for name, buffer in state.buffers.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _numbered(name: str, tree: Any) -> dict[str, Tensor]:
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tree_leaves(tree))}


def restored(
    folder: Path, manifest: Manifest, ranks: Ranks, state: InnerState, tangents: Tangents
) -> tuple[InnerState, Tangents] | str:
    """The state and the tangents that a checkpoint holds, as this rank keeps them; or what is wrong with its files.
    Called alike on all ranks, on which it ends alike.

    Args:
        state: tensors of the shapes, dtypes and device of the result; they stay as they are.
        tangents: these are filled in place, if nothing is wrong.

    Raises:
        UserError: a file that was whole cannot be read any more.
    """
    if changed := changed_files(folder, {name: part.sha256 for name, part in manifest.files.items()}, ranks):
        return ", ".join(changed)
    problem, checkpoint = "", Checkpoint([], ranks.data.columns(len(state.weights)))
    with ExitStack() as stack:
        try:
            files = [_opened(folder / name, part, stack) for name, part in manifest.files.items()]
            checkpoint = replace(checkpoint, files=sorted(files, key=lambda file: file.part.start))
            checkpoint.check(state, tangents)
        except (OSError, SafetensorError, ValueError) as error:
            problem = str(error)
        if problem := next(filter(None, ranks.gather_objects(problem)), ""):
            return problem
        try:
            return checkpoint.read(manifest.step, state, tangents)
        except (OSError, SafetensorError) as error:
            raise UserError(Fault("RUN_DIR", f"{folder} cannot be read: {error}", "a disk that can be read")) from None


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


class _Target(NamedTuple):
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

    def check(self, state: InnerState, tangents: Tangents) -> None:
        """Compares every name, shape and dtype that `read` needs; reads no numbers.

        Raises:
            ValueError: something is missing or of another shape or dtype; the tensor is named.
            SafetensorError: a file is damaged.
        """
        for target in _targets(state, tangents):
            list(self._pieces(target))

    def read(self, step: int, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
        """The state and the tangents as this rank keeps them.

        Args:
            step: that they were kept after.
            state: tensors of the shapes, dtypes and device of the result; they stay as they are.
            tangents: these are filled in place.
        """
        weights, buffers = torch.empty_like(state.weights), tree_map(torch.empty_like, state.buffers)
        filled = InnerState(step, weights, tree_map(torch.empty_like, state.optimizer), buffers)
        for target in _targets(filled, tangents):
            for piece in self._pieces(target):
                piece.tensor.copy_(piece.load())
        return filled, tangents

    def _pieces(self, target: _Target) -> Iterator[_Piece]:
        """The pieces that fill the target; their shapes and dtypes fit."""
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


def _targets(state: InnerState, tangents: Tangents) -> Iterator[_Target]:
    """Every tensor of this rank."""
    yield _Target(state.weights, "weights", whole=True)
    yield from (_Target(tensor, name) for name, tensor in _numbered("optimizer", state.optimizer).items())
    yield from (_Target(buffer, f"buffers.{name}", whole=True) for name, buffer in state.buffers.items())
    by_columns = {"tangents.weights": tangents.weights, **_numbered("tangents.optimizer", tangents.optimizer)}
    for row, element in enumerate(tangents.elements):
        yield from (_Target(rows[row], name, element) for name, rows in by_columns.items())
        for name, rows in tangents.buffers.items():
            yield _Target(rows[row], f"tangents.buffers.{name}", element, whole=True)
