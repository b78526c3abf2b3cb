"""Where samples come from: memory, a dataset that is read as they are asked for, or a stream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fds_dist.common.batch import Batch, checked_batch, map_tensors, tensors_in
from fds_dist.common.faults import Fault, UserError, user_line
from fds_dist.common.randomness import derive_seed, drawing, keyed
from fds_dist.common.transfer import to_device

Collate = Callable[[list[Any]], Any]
"""A list of samples → a batch."""


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def batches(self, chunks: Sequence[Tensor], seed: int, first: int = 0) -> Iterator[Batch]:
        """The batch of each chunk of indices from number ``first`` on, in order, on the device of the last `to`; what
        is random about reading one depends on ``seed`` and its number alone."""
        ...

    def to(self, device: torch.device) -> None:
        """Later batches are on ``device``."""
        ...


class TensorSource:
    """Samples in memory: one batch of all of them, along dimension 0 of its tensors. `to` moves all of them."""

    def __init__(self, samples: Batch) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(tensors_in(self.samples)[0])

    def batches(self, chunks: Sequence[Tensor], seed: int, first: int = 0) -> Iterator[Batch]:
        """All indices go to the device in one copy."""
        if not (chunks := chunks[first:]):
            return
        indices = to_device(torch.cat(list(chunks)), tensors_in(self.samples)[0].device)
        for rows in indices.split([len(chunk) for chunk in chunks]):
            yield map_tensors(lambda tensor, rows=rows: tensor[rows], self.samples)

    def to(self, device: torch.device) -> None:
        self.samples = map_tensors(lambda tensor: to_device(tensor, device), self.samples)


class StreamSource:
    """Samples of a map-style ``dataset``, read ahead by ``workers`` processes (0: by this one) as they are asked for.

    What the dataset and ``collate`` draw from global generators (a random transform) depends on the keys of the batch
    alone: the batches are the same whatever the number of workers. The processes stay from one epoch to the next.
    Every rank reads whole batches, also where its network sees a part: the samples of a batch draw one after the other
    and are collated together, so that a part read by itself could be another.

    Args:
        name: of the part in faults: ``train``.
        collate: makes a batch of a list of samples; default: that of `DataLoader`.
        worker_init: called in each worker, as by `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        workers: int,
        name: str = "root",
        collate: Collate | None = None,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        self._dataset, self._workers, self._name, self._worker_init = dataset, workers, name, worker_init
        self._reader = _Reader(dataset, collate or torch.utils.data.default_collate)
        self._device = torch.device("cpu")
        self._idle: list[tuple[DataLoader[Any], list[Key]]] = []

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def batches(self, chunks: Sequence[Tensor], seed: int, first: int = 0) -> Iterator[Batch]:
        """Raises `UserError` for a sample that cannot be read."""
        keys = [(derive_seed(seed, number), chunk.tolist()) for number, chunk in enumerate(chunks[first:], first)]
        with told(self._name):
            for batch in self._read(keys) if self._workers else map(self._reader.__getitem__, keys):
                yield on_device(batch, self._name, self._device)

    def _read(self, keys: list[Key]) -> Iterator[Any]:
        """By a loader that no other iterator uses now: those of two epochs may be open at once."""
        loader, order = self._idle.pop() if self._idle else self._loader()
        order[:] = keys
        try:
            yield from loader
        finally:
            self._idle.append((loader, order))

    def _loader(self) -> tuple[DataLoader[Any], list[Key]]:
        order: list[Key] = []
        loader = DataLoader(
            self._reader,
            batch_size=None,  # the reader makes the batches
            sampler=order,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=self._worker_init,
            persistent_workers=True,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # the caller's generators stay as they are
        )
        return loader, order

    def to(self, device: torch.device) -> None:
        self._device = device


Key = tuple[int, list[int]]
"""A batch to read: the seed of what is random about it, and its samples."""


class _Reader(Dataset[Any]):
    """Batches of a dataset by `Key`."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, key: Key) -> Any:
        seed, indices = key
        with drawing(seed):
            several = getattr(self._dataset, "__getitems__", None)  # as torch's own fetcher asks
            samples: Any = several(indices) if callable(several) else [self._dataset[index] for index in indices]
            return self._collate(samples)


class IterableSource:
    """The first batches of an iterable dataset, which starts anew for each epoch.

    What it draws from global generators depends on the seed of the epoch alone. One that has `set_epoch` (those of
    Hugging Face, which shuffle by it) is told a number that the seed determines.

    Args:
        batch_size: samples of a batch.
        workers: 0 or 1: several would each give samples of their own.
    """

    def __init__(self, dataset: Iterable[Any], batch_size: int, workers: int, name: str, collate: Collate) -> None:
        self._epochs = _Epoch(dataset, batch_size, collate)
        self._workers, self._name, self._device = workers, name, torch.device("cpu")

    def batches(self, count: int, seed: int) -> Iterator[Batch]:
        """The first `count` batches of the epoch of `seed`; fewer where there are fewer samples.

        Raises:
            UserError: the dataset fails.
        """
        self._epochs.seed = seed
        batches: Iterable[Any] = self._epochs
        if self._workers:
            options: Any = {"collate_fn": _as_it_is, "generator": torch.Generator()}
            batches = DataLoader(self._epochs, batch_size=None, num_workers=1, **options)
        with told(self._name):
            for batch in islice(batches, count):
                yield on_device(batch, self._name, self._device)

    def to(self, device: torch.device) -> None:
        """Later batches are on ``device``."""
        self._device = device


class _Epoch(IterableDataset[Any]):
    """The batches of one epoch of an iterable dataset, without a last partial one."""

    seed = 0

    def __init__(self, dataset: Iterable[Any], batch_size: int, collate: Collate) -> None:
        self._dataset, self._batch_size, self._collate = dataset, batch_size, collate

    def __iter__(self) -> Iterator[Any]:
        if callable(set_epoch := getattr(self._dataset, "set_epoch", None)):
            set_epoch(derive_seed(self.seed, "epoch") % 2**31)
        return keyed(lambda: self._batches(iter(self._dataset)), self.seed)

    def _batches(self, samples: Iterator[Any]) -> Iterator[Any]:
        while len(chunk := list(islice(samples, self._batch_size))) == self._batch_size:
            yield self._collate(chunk)


class UnreadableSample(RuntimeError):
    """A sample cannot be read; the message, of one line, names it."""

    expected = "files that can be read"
    """What would be right; on the class, since worker processes hand on the message alone."""


class WrongSample(UnreadableSample):
    """A sample cannot be part of a batch; the message, of one line, names it."""

    expected = "(x, y) pairs, or mappings, of tensors, arrays or numbers, alike in all samples; or collate="


@contextmanager
def told(name: str) -> Iterator[None]:
    """Exceptions of a dataset inside become a `UserError` of the part `name`, also those of worker processes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # From a worker comes the whole traceback as text; its last line has the message.
        kind, last = type(error), (str(error).strip().splitlines() or [""])[-1]
        message = last.removeprefix(f"{kind.__module__}.{kind.__name__}: ").removeprefix(f"{kind.__name__}: ")
        if isinstance(error, UnreadableSample):
            raise UserError(Fault(f"task.{name}", message, error.expected)) from error
        problem = f"reading samples raised {kind.__name__}: {message}{user_line(error)}"
        raise UserError(Fault(f"task.{name}", problem, "a dataset that gives every sample")) from error


def on_device(batch: object, name: str, device: torch.device) -> Batch:
    """The batch, checked, on the device."""
    return map_tensors(lambda tensor: to_device(tensor, device), checked_batch(batch, name))


def _as_it_is(batch: Any) -> Any:
    return batch
