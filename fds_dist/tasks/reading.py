"""Samples of a user's data, read once into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.tasks.inspection import same_tensor

READ_AGAIN = 16
"""Samples that are read twice. A transform that changes a sample every other time is missed with a chance of 2^-16."""

PAIR = "an (x, y) pair of tensors, arrays or numbers"


def read_samples(data: object, name: str) -> Batch:
    """All samples of a dataset, or of a pair of tensors or arrays, as one pair of tensors.

    Args:
        name: of the part, `train`; faults name it.

    Raises:
        UserError: it is neither, samples have several shapes, or a sample is another one when it is read again.
    """
    if (pair := _pair_of_arrays(data, name)) is not None:
        return pair
    samples = [_sample(pair, name, index) for index, pair in enumerate(_items(data, name))]
    if not samples:
        raise UserError(Fault(f"task.{name}", "the dataset is empty", "at least one (x, y) pair"))
    if not isinstance(data, (list, tuple)):
        _check_read_again(data, samples, name)
    first = samples[0]
    for index, sample in enumerate(samples):
        for part, here, there in zip("xy", sample, first, strict=True):
            if here.shape != there.shape:
                problem = (
                    f"{part} of sample {index} has shape {tuple(here.shape)}, that of sample 0 {tuple(there.shape)}"
                )
                raise UserError(Fault(f"task.{name}", problem, "one shape for all samples"))
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def _pair_of_arrays(data: object, name: str) -> Batch | None:
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


def _items(data: object, name: str) -> Iterator[object]:
    """The samples of a map-style dataset, or of an iterable one that has a length."""
    key, iterable = f"task.{name}", isinstance(data, IterableDataset)
    if iterable and not hasattr(data, "__len__"):
        problem = f"{type(data).__name__} is an iterable dataset without a length, which may never end"
        raise UserError(Fault(key, problem, "a dataset with a length, or a list of its samples"))
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


def _check_read_again(data: object, samples: list[Batch], name: str) -> None:
    """That the first samples are the same when they are read again."""
    again: Any = (
        data if isinstance(data, IterableDataset) else map(cast(_Indexed, data).__getitem__, range(len(samples)))
    )
    for index, pair in enumerate(islice(again, min(READ_AGAIN, len(samples)))):
        if not all(map(same_tensor, _sample(pair, name, index), samples[index])):
            problem = (
                f"sample {index} is another one when it is read again (a random transform?), but is read only once"
            )
            expected = "a DataLoader of the dataset, which reads anew in each epoch, or augment=, a function of a batch"
            raise UserError(Fault(f"task.{name}", problem, expected))


def _sample(pair: object, name: str, index: int) -> Batch:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        kind = f"{len(pair)} parts" if isinstance(pair, (tuple, list)) else f"a {type(pair).__name__}"
        if isinstance(pair, dict):
            kind += f" with the keys {', '.join(map(str, pair))}"
        raise UserError(Fault(f"task.{name}", f"sample {index} is {kind}", PAIR))
    try:
        return torch.as_tensor(pair[0]), torch.as_tensor(pair[1])
    except (TypeError, ValueError, RuntimeError):
        kinds = f"({type(pair[0]).__name__}, {type(pair[1]).__name__})"
        raise UserError(Fault(f"task.{name}", f"sample {index} is {kinds}", PAIR)) from None
