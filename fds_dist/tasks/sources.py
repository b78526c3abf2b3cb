"""Where the samples of a task lie: in memory, or in a data set that is read by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fds_dist.faults import Fault, UserError
from fds_dist.tasks.base import Batch


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def batches(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        """(inputs, targets) of each chunk of indices, in order, on the device of the last `to`."""
        ...

    def to(self, device: torch.device) -> None:
        """Later batches are on ``device``."""
        ...


class TensorSource:
    """Samples in memory: ``inputs`` and ``targets``, with samples along dimension 0. `to` moves all of them."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        for chunk in chunks:
            here = chunk.to(self.inputs.device)
            yield self.inputs[here], self.targets[here]

    def to(self, device: torch.device) -> None:
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)


class StreamSource:
    """Samples of a map-style ``dataset`` of (tensor, whole number), read ahead by ``workers`` processes (0: by this
    one) as they are asked for.

    The dataset must give the same for the same index: what is random belongs to the task that draws the batches.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], workers: int) -> None:
        self._dataset, self._workers, self._device = dataset, workers, torch.device("cpu")

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def batches(self, chunks: Iterable[Tensor]) -> Iterator[Batch]:
        """Raises `UserError` for a sample that cannot be read."""
        order: Sequence[list[int]] = [chunk.tolist() for chunk in chunks]
        loader = DataLoader(
            self._dataset,
            batch_sampler=order,
            num_workers=self._workers,
            generator=torch.Generator(),  # else it draws from the global one, which belongs to the network's dropout
        )
        try:
            for inputs, targets in loader:
                yield inputs.to(self._device), targets.to(self._device)
        except UnreadableSample as error:
            # From a worker comes the whole traceback as text; its last line has the message.
            message = str(error).strip().splitlines()[-1].removeprefix(f"{__name__}.{UnreadableSample.__name__}: ")
            raise UserError(Fault("task.root", message, "files that can be read")) from error

    def to(self, device: torch.device) -> None:
        self._device = device


class UnreadableSample(RuntimeError):
    """A sample cannot be read; the message names it."""
