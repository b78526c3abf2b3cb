"""A task that draws its batches from sources of samples, in memory or read by worker processes: splits, order and
augmentation, keyed by the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fds_dist.common.batch import Batch, checked_batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, OpenFraction, Seed, Switch
from fds_dist.common.options import checked
from fds_dist.common.randomness import derive_seed, generator, keyed
from fds_dist.common.words import counted
from fds_dist.tasks.base import Loss, Metrics


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def batches(self, chunks: Iterable[Tensor], seed: int) -> Iterator[Batch]:
        """(inputs, targets) of each chunk of indices, in order, on the device of the last `to`; what is random about
        reading them depends on ``seed`` alone."""
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

    def batches(self, chunks: Iterable[Tensor], seed: int) -> Iterator[Batch]:
        for chunk in chunks:
            here = chunk.to(self.inputs.device)
            yield self.inputs[here], self.targets[here]

    def to(self, device: torch.device) -> None:
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)


class StreamSource:
    """Samples of a map-style ``dataset``, read ahead by ``workers`` processes (0: by this one) as they are asked for.

    What the dataset draws from global generators (a random transform) depends on the keys of the batches alone.

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
        collate: Callable[[list[Any]], Any] | None = None,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        self._dataset, self._workers, self._name = dataset, workers, name
        self._collate, self._worker_init = collate, worker_init
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def batches(self, chunks: Iterable[Tensor], seed: int) -> Iterator[Batch]:
        """Raises `UserError` for a sample that cannot be read."""
        order: Sequence[list[int]] = [chunk.tolist() for chunk in chunks]
        loader = DataLoader(
            self._dataset,
            batch_sampler=order,
            num_workers=self._workers,
            collate_fn=self._collate,
            worker_init_fn=self._worker_init,
        )
        try:
            for batch in keyed(lambda: loader, seed):
                inputs, targets = _checked_pair(batch, self._name)
                yield inputs.to(self._device), targets.to(self._device)
        except UnreadableSample as error:
            # From a worker comes the whole traceback as text; its last line has the message.
            message = str(error).strip().splitlines()[-1].removeprefix(f"{__name__}.{UnreadableSample.__name__}: ")
            raise UserError(Fault(f"task.{self._name}", message, "files that can be read")) from error

    def to(self, device: torch.device) -> None:
        self._device = device


class UnreadableSample(RuntimeError):
    """A sample cannot be read; the message names it."""


EVALUATION_BATCH = 500  # samples per validation and test batch, at most
Prepare = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]


class SampledTask:
    """Batches from the N samples of ``train``, and from ``val`` and ``test`` where there are such sources.

    Without ``val`` each outer step draws another validation split from the N samples, a share of ``val_fraction``; the
    rest is for training, or with ``val_overlap`` all N are. A training epoch is a permutation of its samples, keyed by
    (seed, outer step, epoch), whose last partial batch is dropped; one of `retrain_batches` is a permutation of all N,
    keyed by (seed, epoch). Validation and test yield every sample once, a last single one with the batch before it;
    without ``test`` there is nothing to test on.

    Inputs go through ``prepare``, those for training then through ``augment(inputs, generator)``, whose generator is
    keyed by the epoch's keys and the step within it. So a batch depends on no rank and on no batch before it.

    Raises `UserError` with every fault in the options.
    """

    steps_per_epoch: int
    retrain_steps_per_epoch: int
    input_shape: tuple[int, ...]  # set by the tasks that know it
    classes: int  # likewise, where the targets are class labels
    loss: Loss
    val_loss: Loss  # only where an argument sets it
    metrics: Metrics  # likewise
    build_model: Callable[[int], nn.Module]  # only where an argument sets a model

    @checked("task")
    def __init__(
        self,
        train: Source,
        val: Source | None = None,
        test: Source | None = None,
        *,
        batch_size: Count,
        val_fraction: OpenFraction = 0.1,
        val_overlap: Switch = False,
        val_batch_size: Count = EVALUATION_BATCH,
        seed: Seed = 0,
        prepare: Prepare | None = None,
        augment: Augment | None = None,
        loss: Loss = F.cross_entropy,
        val_loss: Loss | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._train, self._val, self._test = train, val, test
        self._seed, self._batch_size, self._val_batch_size = seed, batch_size, val_batch_size
        self._val_samples = max(1, round(val_fraction * len(train))) if val is None else 0
        self._first_train_sample = 0 if val_overlap else self._val_samples
        self._prepare, self._augment = prepare or _unchanged, augment
        train_samples = len(train) - self._first_train_sample
        if train_samples < 1:
            problem = f"{val_fraction:g} of {counted(len(train), 'sample')} leaves none for training"
            raise UserError(Fault("task.val_fraction", problem, "a smaller fraction, more samples, or val="))
        if batch_size > train_samples:
            expected = f"at most {train_samples}, the samples left for training"
            raise UserError(Fault("task.batch_size", f"{batch_size} is too large", expected))
        self.steps_per_epoch = train_samples // batch_size
        self.retrain_steps_per_epoch = len(train) // batch_size
        self.loss = loss
        if val_loss is not None:
            self.val_loss = val_loss
        if metrics is not None:
            self.metrics = metrics

    def to(self, device: torch.device) -> None:
        """Later batches are prepared on ``device``; samples in memory move there now."""
        for source in (self._train, self._val, self._test):
            if source is not None:
                source.to(device)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Batch]:
        return self._training(self._split(outer_step)[self._first_train_sample :], "train", outer_step, epoch)

    def retrain_batches(self, epoch: int) -> Iterator[Batch]:
        return self._training(torch.arange(len(self._train)), "retrain", epoch)

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        if self._val is not None:
            return self._evaluation(self._val, torch.arange(len(self._val)))
        return self._evaluation(self._train, self._split(outer_step)[: self._val_samples])

    def test_batches(self) -> Iterator[Batch]:
        return iter(()) if self._test is None else self._evaluation(self._test, torch.arange(len(self._test)))

    def _split(self, outer_step: int) -> Tensor:
        """Indices of all training samples, those for validation first."""
        return torch.randperm(len(self._train), generator=generator(self._seed, "validation split", outer_step))

    def _training(self, samples: Tensor, purpose: str, *keys: int) -> Iterator[Batch]:
        """One epoch over ``samples``, keyed by (seed, purpose, keys)."""
        order = torch.randperm(len(samples), generator=generator(self._seed, f"{purpose} batches", *keys))
        used = len(samples) - len(samples) % self._batch_size
        chunks = samples[order[:used]].split(self._batch_size)
        read = self._train.batches(chunks, derive_seed(self._seed, f"{purpose} samples", *keys))
        for step, (inputs, targets) in enumerate(read):
            prepared = self._prepare(inputs)
            if self._augment is not None:
                prepared = self._augment(prepared, generator(self._seed, f"{purpose} augmentation", *keys, step))
            yield prepared, targets

    def _evaluation(self, source: Source, samples: Tensor) -> Iterator[Batch]:
        chunks = list(samples.split(self._val_batch_size))
        if len(chunks) > 1 and len(chunks[-1]) == 1 < self._val_batch_size:
            chunks[-2:] = [torch.cat(chunks[-2:])]  # batch-norm on batch statistics takes no single sample
        for inputs, targets in source.batches(chunks, derive_seed(self._seed, "evaluation samples")):
            yield self._prepare(inputs), targets


def _checked_pair(batch: object, source: str) -> tuple[Tensor, Tensor]:
    checked = checked_batch(batch, source)
    if isinstance(checked, tuple) and len(checked) == 2 and all(isinstance(part, Tensor) for part in checked):
        return checked[0], checked[1]
    raise UserError(Fault(f"task.{source}", f"gave a {type(batch).__name__}", "pairs (x, y) of tensors"))


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs
