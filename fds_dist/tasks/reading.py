"""Samples of a user's data: into memory where they fit, and together as a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten
from torch.utils.data import IterableDataset

from fds_dist.common.batch import Batch, tensors_in
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.tasks.inspection import same_batch
from fds_dist.tasks.sources import WrongSample

READ_AGAIN = 16
"""Samples that are read twice. A transform that changes a sample every other time is missed with a chance of 2^-16."""

MEMORY = 2**30
"""Bytes: a dataset whose samples are larger together is read as they are asked for."""


def read_samples(data: object, name: str) -> Batch:
    """All samples of a dataset, or of a pair of tensors or arrays, as one batch.

    Args:
        name: of the part, `train`; faults name it.

    Raises:
        UserError: it is neither, samples have several shapes, or a sample is another one when it is read again.
    """
    if (pair := pair_of_arrays(data, name)) is not None:
        return pair
    samples = list(items(data, name))
    if not samples:
        raise UserError(Fault(f"task.{name}", "the dataset is empty", "at least one (x, y) pair"))
    try:
        batch = stacked(samples)
        if not isinstance(data, (list, tuple)):
            _check_read_again(data, samples, name)
    except WrongSample as error:
        raise UserError(Fault(f"task.{name}", str(error), error.expected)) from None
    return batch


def fits(data: object, name: str) -> bool:
    """Whether the samples of a map-style dataset take at most `MEMORY`, judged by the first one.

    Raises:
        UserError: it is no dataset, or its first sample cannot be read.
    """
    first = next(items(data, name), None)
    if first is None:
        return True
    try:
        tensors = tensors_in(_tensors_of(first, 0))
    except WrongSample as error:
        raise UserError(Fault(f"task.{name}", str(error), error.expected)) from None
    return len(cast(_Indexed, data)) * sum(tensor.nbytes for tensor in tensors) <= MEMORY


def stacked(samples: list[Any]) -> Batch:
    """A batch of samples: each tensor of theirs along a new dimension 0. Whole numbers as y of a pair become int64.

    Raises:
        WrongSample: a sample is neither a pair nor a mapping of tensors, or unlike the first one.
    """
    trees = [_tensors_of(sample, index) for index, sample in enumerate(samples)]
    (first, structure), names = tree_flatten(trees[0]), [_path(path) for path, _ in tree_flatten_with_path(trees[0])[0]]
    columns: list[list[Tensor]] = [[] for _ in first]
    for index, tree in enumerate(trees):
        leaves, other = tree_flatten(tree)
        if other != structure:
            raise WrongSample(f"sample {index} has another structure than sample 0")
        for name, column, here, there in zip(names, columns, leaves, first, strict=True):
            if here.shape != there.shape:
                raise WrongSample(
                    f"{name} of sample {index} has shape {tuple(here.shape)}, that of sample 0 {tuple(there.shape)}"
                )
            column.append(here)
    batch = tree_unflatten([torch.stack(column) for column in columns], structure)
    if isinstance(batch, tuple) and isinstance(batch[1], Tensor) and are_labels(batch[1]):
        batch = batch[0], batch[1].long()
    return batch


def are_labels(targets: Tensor) -> bool:
    """Whether `targets` [N] are whole numbers: the classes of samples."""
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return whole and targets.dim() == 1


def pair_of_arrays(data: object, name: str) -> tuple[Tensor, Tensor] | None:
    """`(inputs, targets)` as tensors, arrays or lists; None where `data` is another thing."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        return None
    arrays = all(isinstance(part, (Tensor, np.ndarray)) for part in data)
    lists = isinstance(data, tuple) and all(isinstance(part, (Tensor, np.ndarray, list)) for part in data)
    if not (arrays or lists):
        return None
    try:
        return torch.as_tensor(data[0]), torch.as_tensor(data[1])
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"the pair (inputs, targets) is no pair of tensors: {error}"
        raise UserError(Fault(f"task.{name}", problem, "numbers of one shape for all samples")) from None


class _Indexed(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


def items(data: object, name: str) -> Iterator[object]:
    """The samples of a map-style dataset, or of an iterable one that has a length.

    Raises:
        UserError: it is neither, it fails, or it has fewer samples than its length.
    """
    key, iterable = f"task.{name}", isinstance(data, IterableDataset)
    if iterable and not hasattr(data, "__len__"):
        problem = f"{type(data).__name__} is an iterable dataset without a length, which may never end"
        raise UserError(
            Fault(key, problem, "steps_per_epoch= (as train), a dataset with a length, or a list of its samples")
        )
    if not (hasattr(data, "__len__") and (iterable or hasattr(data, "__getitem__"))):
        problem = f"{type(data).__name__} has no length or no indexing"
        raise UserError(Fault(key, problem, "a dataset of (x, y) pairs, a pair of tensors, or a DataLoader"))
    with user_code(key, f"reading {type(data).__name__}"):
        length = len(cast(_Indexed, data))
        if not iterable:
            yield from (cast(_Indexed, data)[index] for index in range(length))
            return
        count = 0
        for sample in islice(cast(Iterable[object], data), length):
            count += 1
            yield sample
    if count < length:
        raise UserError(Fault(key, f"{type(data).__name__} gave {count} samples", f"{length}, its length"))


def _check_read_again(data: object, samples: list[Any], name: str) -> None:
    """That the first samples are the same when they are read again."""
    again: Any = (
        data if isinstance(data, IterableDataset) else map(cast(_Indexed, data).__getitem__, range(len(samples)))
    )
    for index, sample in enumerate(islice(again, min(READ_AGAIN, len(samples)))):
        if not same_batch(_tensors_of(sample, index), _tensors_of(samples[index], index)):
            problem = (
                f"sample {index} is another one when it is read again (a random transform?), but is read only once"
            )
            expected = "stream=True, which reads anew in each epoch, or augment=, a function of a batch"
            raise UserError(Fault(f"task.{name}", problem, expected))


def _tensors_of(sample: object, index: int) -> Batch:
    """A sample with tensors in the place of its arrays and numbers.

    Raises:
        WrongSample: it is neither a pair nor a mapping of such.
    """
    if isinstance(sample, Mapping):
        return _tree(sample, f"sample {index} is a {type(sample).__name__} with the keys {', '.join(map(str, sample))}")
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        kinds = f"({type(sample[0]).__name__}, {type(sample[1]).__name__})"
        return _tree(sample[0], f"sample {index} is {kinds}"), _tree(sample[1], f"sample {index} is {kinds}")
    kind = f"{len(sample)} parts" if isinstance(sample, (tuple, list)) else f"a {type(sample).__name__}"
    raise WrongSample(f"sample {index} is {kind}")


def _tree(value: object, wrong: str) -> Any:
    """`value` as a tensor, or as a dict or tuple of them; `wrong` is said of anything else."""
    if isinstance(value, Mapping):
        return {
            key: _tree(part, wrong if isinstance(part, Mapping) else f"{wrong}, {key} a {type(part).__name__}")
            for key, part in value.items()
        }
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        if isinstance(value, (tuple, list)) and not any(isinstance(part, (str, bytes)) for part in value):
            return tuple(_tree(part, wrong) for part in value)
        raise WrongSample(wrong) from None


def _path(path: tuple[Any, ...]) -> str:
    """`x`, `y['mask']` of a pair, `['ids']` of a mapping."""
    if path and getattr(path[0], "idx", None) in (0, 1):
        return "xy"[path[0].idx] + keystr(path[1:])
    return keystr(path)
