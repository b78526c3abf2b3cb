"""A batch of a task: its inputs and targets, the way of inputs into a network, its samples, and the part of them that
one process sees where batches are split over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from fds_dist.common.faults import Fault, UserError

Batch = Any
"""A pair `(inputs, targets)`, each a tensor, a mapping, a sequence or another pytree of tensors. Or a pytree that is no
pair, such as a mapping: it is the inputs and the targets as well. Samples are along dimension 0 of its tensors."""

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Leaves of a batch or an output beside tensors; they are passed on as they are."""


def inputs_of(batch: Batch) -> Any:
    """What the network gets."""
    return batch[0] if _is_pair(batch) else batch


def targets_of(batch: Batch) -> Any:
    """What the loss gets."""
    return batch[1] if _is_pair(batch) else batch


def with_inputs(batch: Batch, inputs: Any) -> Batch:
    """The batch with other inputs."""
    return (inputs, batch[1]) if _is_pair(batch) else inputs


def _is_pair(batch: Batch) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def call(network: Callable[..., Any], inputs: Any) -> Any:
    """The network's output: a mapping is passed as keywords, a tuple or list as positions, all else as one argument."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a batch, or of its inputs or targets."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def named_leaves(batch: Batch) -> Iterator[tuple[str, Any]]:
    """The leaves of a batch with their paths: `inputs`, `targets['mask']`, of what is no pair `batch['labels']`."""
    parts = {"inputs": batch[0], "targets": batch[1]} if _is_pair(batch) else {"batch": batch}
    for name, part in parts.items():
        for path, leaf in tree_flatten_with_path(part)[0]:
            yield name + keystr(path), leaf


def described(value: object) -> str:
    """`[64, 10] float32` for a tensor, `{ids: [8, 16] int64, name: str}` for a mapping, else `a NAME` of its type."""
    return _described(value) if isinstance(value, (Tensor, Mapping, tuple, list)) else f"a {type(value).__name__}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_described(part)}' for name, part in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_described, value))})"
    return type(value).__name__


def samples_in(batch: Batch) -> int:
    """The number of samples: the most rows of a tensor among the targets, or among the inputs where these have none.

    1 where no tensor has a dimension.
    """
    tensors = tensors_in(targets_of(batch)) or tensors_in(batch)
    return max((len(tensor) for tensor in tensors if tensor.dim()), default=1)


def common_rows(batch: Batch) -> int | None:
    """The number of rows that all tensors of a batch have, apart from those with one row or no dimension.

    None where there are several such numbers: these samples cannot be told apart.
    """
    rows = {len(tensor) for tensor in tensors_in(batch) if tensor.dim()}
    several = rows - {1} or rows
    return several.pop() if len(several) == 1 else None


def take_rows(tree: Any, rows: slice) -> Any:
    """A batch with a `common_rows`, or its inputs, with some of its samples.

    Tensors with one row or no dimension belong to all samples and stay whole.
    """
    return map_tensors(lambda tensor: tensor[rows] if tensor.dim() and len(tensor) > 1 else tensor, tree)


def without_other_inputs(batch: Batch, rows: slice) -> Batch | None:
    """A pair with these rows of its inputs and all of its targets. None where the batch's samples need its inputs."""
    if not _is_pair(batch) or not tensors_in(targets_of(batch)):
        return None
    return take_rows(inputs_of(batch), rows), targets_of(batch)


def first_samples(batch: Batch, samples: int) -> Batch:
    """The first `samples` of a batch; the whole of it where its samples cannot be told apart."""
    return batch if common_rows(batch) is None else take_rows(batch, slice(samples))


def micro_batches(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """`batch` in `count` parts along its samples, each with its fraction of them.

    Sizes differ by at most one, the larger ones first. A batch with fewer samples has a part for each; one whose
    samples cannot be told apart (see `common_rows`) stays whole.
    """
    rows = None if count == 1 else common_rows(batch)
    if rows is None:
        return [(batch, 1.0)]
    count = min(count, rows)
    size, larger = divmod(rows, count)
    ends = [size * place + min(place, larger) for place in range(count + 1)]
    return [(take_rows(batch, slice(*pair)), (pair[1] - pair[0]) / rows) for pair in pairwise(ends)]


@dataclass(frozen=True)
class Share:
    """How the part of a batch that this process sees belongs to the whole."""

    fraction: float = 1.0
    """Of the batch's samples."""
    rows: slice | None = None
    """The samples of the part among those of its `batch`. None: all."""
    each: Callable[[Tensor], Tensor] | None = None
    """From a tensor [...] of this part those of all parts [P, ...], differentiable twice: batch-norm then uses the
    statistics of the whole batch. None: those of this part."""
    gather: Callable[[Tensor], Tensor] | None = None
    """The outputs of the whole batch from those of this part, differentiable twice. None: this part is the whole."""


WHOLE = Share()


@dataclass(frozen=True)
class Part:
    """What one process sees of a batch: its network sees a part of the inputs, its loss the whole batch, since every
    process computes the loss of the whole batch."""

    batch: Batch
    share: Share = WHOLE
    seed: int = 0
    """Of the random numbers that the task's `augment` draws for the whole batch, the same for all parts."""

    @property
    def inputs(self) -> Any:
        """The inputs of this part's samples. Not kept: a view taken within a derivative belongs to it alone."""
        return self.own(inputs_of(self.batch))

    def own(self, inputs: Any) -> Any:
        """This part's samples of the whole batch's `inputs`."""
        return inputs if self.share.rows is None else take_rows(inputs, self.share.rows)

    @property
    def targets(self) -> Any:
        """Those of the whole batch."""
        return targets_of(self.batch)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A checked batch or a network's output with `function` of each of its tensors: a tensor, a dataclass, or any
    pytree of them.

    Raises:
        UserError: it is or holds another object, whose tensors cannot be found; names `mesh.data`, which needs them.
    """

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if is_dataclass(leaf) and not isinstance(leaf, type):
            parts = {each.name: map_tensors(function, getattr(leaf, each.name)) for each in fields(leaf) if each.init}
            return replace(leaf, **parts)
        if isinstance(leaf, PLAIN):
            return leaf
        problem = f"the network's output is or holds a {type(leaf).__name__}, whose tensors cannot be gathered"
        expected = "a tensor, or a tuple, mapping or dataclass of tensors; or mesh.data=1"
        raise UserError(Fault("mesh.data", problem, expected))

    # A single tensor, as inputs and outputs mostly are, needs no pytree: in a small network's step these take time.
    return function(tree) if isinstance(tree, Tensor) else tree_map(mapped, tree)


def checked_batch(batch: object, source: str) -> Batch:
    """Returns `batch` if it is one: with pairs as tuples, and mappings that PyTorch does not take apart as dicts.

    Raises:
        UserError: it holds no tensor, or an object that is neither a tensor nor `PLAIN`, such as a numpy array; names
            `source`, the task's function that gave it, and the object's path.
    """
    checked = _with_dicts(batch)
    leaves = tree_leaves(checked)
    strangers = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))]
    if not strangers and any(isinstance(leaf, Tensor) for leaf in leaves):
        return tuple(checked) if _is_pair(checked) and type(checked) is list else checked
    kind = type(batch).__name__
    if isinstance(checked, (tuple, list)):
        kind += f" of {', '.join(type(part).__name__ for part in checked)}" if checked else " without parts"
    if not strangers:
        kind += ", which holds no tensor"
    elif strangers[0] is not checked:
        path = next(path for path, leaf in named_leaves(checked) if leaf is strangers[0])
        kind += f": {path} is of the type {type(strangers[0]).__name__}"
    expected = "pairs (x, y) of tensors, or mappings, sequences or other pytrees of tensors"
    raise UserError(Fault(f"task.{source}", f"gave a {kind}", expected))


def _with_dicts(tree: Any) -> Any:
    """`tree` with dicts for the mappings that are leaves to PyTorch, such as a `UserDict` or a subclass of dict."""

    def opened(leaf: Any) -> Any:
        return {name: _with_dicts(part) for name, part in leaf.items()} if isinstance(leaf, Mapping) else leaf

    return tree_map(opened, tree)
