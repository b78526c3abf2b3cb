"""Tasks that draw their batches from sources of samples: splits, order and augmentation, keyed by the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fds_dist.common.batch import Batch, inputs_of, with_inputs
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, OpenFraction, Seed, Switch
from fds_dist.common.options import checked
from fds_dist.common.randomness import derive_seed, generator
from fds_dist.common.words import counted
from fds_dist.tasks.augment import takes_values
from fds_dist.tasks.augmentation import Augmentation, EpochOfChanges
from fds_dist.tasks.base import Loss, Metrics
from fds_dist.tasks.sources import IterableSource, Source

EVALUATION_BATCH = 500  # samples per validation and test batch, at most
Prepare = Callable[[Tensor], Tensor]
Augment = Callable[..., Any]
"""Of (inputs, generator), or of (inputs, generator, h)."""


class DrawnTask:
    """What the tasks over sources have in common.

    Validation and test yield every sample once, a last single one with the batch before it; without ``test`` there is
    nothing to test on. Inputs go through ``prepare``, those for training then through ``augment(inputs, generator)``,
    whose generator is keyed by the epoch's keys and the step within it; an ``augment(inputs, generator, h)`` is the
    task's, for the training step (see `Task`). Where a batch is no pair, its inputs are all
    of it. So a batch depends on no rank and on no batch before it.
    """

    steps_per_epoch: int
    retrain_steps_per_epoch: int
    input_shape: tuple[int, ...]  # set by the tasks that know it
    classes: int  # likewise, where the targets are class labels
    loss: Loss
    val_loss: Loss  # only where an argument sets it
    metrics: Metrics  # likewise
    build_model: Callable[[int], nn.Module]  # only where an argument sets a model
    augment: Callable[..., Any]  # only one with a third parameter

    def __init__(
        self,
        val: Source | None,
        test: Source | None,
        *,
        val_batch_size: int,
        seed: int,
        prepare: Prepare | None,
        augment: Augment | None,
        loss: Loss,
        val_loss: Loss | None,
        metrics: Metrics | None,
    ) -> None:
        self._val, self._test = val, test
        self._seed, self._val_batch_size = seed, val_batch_size
        self._prepare, self._augment = prepare, augment
        self._changes: dict[tuple[str, tuple[int, ...]], EpochOfChanges] = {}
        if augment is not None and takes_values(augment):
            self._augment, self.augment = None, augment
        self.loss = loss
        if val_loss is not None:
            self.val_loss = val_loss
        if metrics is not None:
            self.metrics = metrics

    def to(self, device: torch.device) -> None:
        """Later batches are prepared on ``device``; samples in memory move there now."""
        self._changes.clear()
        for source in (self._val, self._test):
            if source is not None:
                source.to(device)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Batch]:
        return self._augmented("train", outer_step, epoch)

    def retrain_batches(self, epoch: int) -> Iterator[Batch]:
        return self._augmented("retrain", epoch)

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        return iter(()) if self._val is None else self._evaluation(self._val, torch.arange(len(self._val)))

    def test_batches(self) -> Iterator[Batch]:
        return iter(()) if self._test is None else self._evaluation(self._test, torch.arange(len(self._test)))

    def _prepared(self, batch: Batch) -> Batch:
        return batch if self._prepare is None else with_inputs(batch, self._prepare(inputs_of(batch)))

    def _read(self, purpose: str, *keys: int, first: int = 0) -> Iterator[Batch]:
        """The training batches of one epoch from number ``first`` on, keyed by (seed, purpose, keys): "train" with
        outer step and epoch, or "retrain" with the epoch."""
        raise NotImplementedError

    def _augmented(self, purpose: str, *keys: int, first: int = 0) -> Iterator[Batch]:
        change = self._change(purpose, *keys)
        for step, batch in enumerate(self._read(purpose, *keys, first=first), first):
            prepared = self._prepared(batch)
            yield prepared if change is None else with_inputs(prepared, change(inputs_of(prepared), step))

    def _change(self, purpose: str, *keys: int) -> Callable[[Any, int], Any] | None:
        """(inputs, step) → the inputs as `augment` changes them in an epoch; None without one."""
        augment = self._augment
        if augment is None:
            return None

        def random(step: int) -> torch.Generator:
            return generator(self._seed, f"{purpose} augmentation", *keys, step)

        if isinstance(augment, Augmentation):
            steps = self.steps_per_epoch if purpose == "train" else self.retrain_steps_per_epoch
            if (purpose, keys) not in self._changes:  # a reverse sweep comes back to its epoch from stretch to stretch
                self._changes = {(purpose, keys): EpochOfChanges(augment, random, steps)}
            return self._changes[purpose, keys]
        return lambda inputs, step: augment(inputs, random(step))

    def _evaluation(self, source: Source, samples: Tensor) -> Iterator[Batch]:
        chunks = list(samples.split(self._val_batch_size))
        if len(chunks) > 1 and len(chunks[-1]) == 1 < self._val_batch_size:
            chunks[-2:] = [torch.cat(chunks[-2:])]  # batch-norm on batch statistics takes no single sample
        return map(self._prepared, source.batches(chunks, derive_seed(self._seed, "evaluation samples")))


class SampledTask(DrawnTask):
    """Batches from the N samples of ``train``, and from ``val`` and ``test`` where there are such sources.

    Without ``val`` each outer step draws another validation split from the N samples, a share of ``val_fraction``; the
    rest is for training, or with ``val_overlap`` all N are. A training epoch is a permutation of its samples, keyed by
    (seed, outer step, epoch), whose last partial batch is dropped; one of `retrain_batches` is a permutation of all N,
    keyed by (seed, epoch). See `DrawnTask` for the rest.

    Raises `UserError` with every fault in the options.
    """

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
        functions: Any = {
            "prepare": prepare,
            "augment": augment,
            "loss": loss,
            "val_loss": val_loss,
            "metrics": metrics,
        }
        super().__init__(val, test, val_batch_size=val_batch_size, seed=seed, **functions)
        self._train, self._batch_size = train, batch_size
        self._val_samples = max(1, round(val_fraction * len(train))) if val is None else 0
        self.val_overlap = val_overlap and val is None
        self._first_train_sample = 0 if self.val_overlap else self._val_samples
        train_samples = len(train) - self._first_train_sample
        if train_samples < 1:
            problem = f"{val_fraction:g} of {counted(len(train), 'sample')} leaves none for training"
            raise UserError(Fault("task.val_fraction", problem, "a smaller fraction, more samples, or val="))
        if batch_size > train_samples:
            expected = f"at most {train_samples}, the samples left for training"
            raise UserError(Fault("task.batch_size", f"{batch_size} is too large", expected))
        self.steps_per_epoch = train_samples // batch_size
        self.retrain_steps_per_epoch = len(train) // batch_size

    def to(self, device: torch.device) -> None:
        """Later batches are prepared on ``device``; samples in memory move there now."""
        self._train.to(device)
        super().to(device)

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        if self._val is not None:
            return super().val_batches(outer_step)
        return self._evaluation(self._train, self._split(outer_step)[: self._val_samples])

    def _split(self, outer_step: int) -> Tensor:
        """Indices of all training samples, those for validation first."""
        return torch.randperm(len(self._train), generator=generator(self._seed, "validation split", outer_step))

    def _read(self, purpose: str, *keys: int, first: int = 0) -> Iterator[Batch]:
        samples = torch.arange(len(self._train))
        if purpose == "train":
            samples = self._split(keys[0])[self._first_train_sample :]
        order = torch.randperm(len(samples), generator=generator(self._seed, f"{purpose} batches", *keys))
        used = len(samples) - len(samples) % self._batch_size
        chunks = samples[order[:used]].split(self._batch_size)
        return self._train.batches(chunks, derive_seed(self._seed, f"{purpose} samples", *keys), first)


class StreamedTask(DrawnTask):
    """The first ``steps_per_epoch`` batches of an iterable dataset in each epoch, keyed by (seed, outer step, epoch).

    It has no order to choose and no split: validation has a source of its own. See `DrawnTask` for the rest.
    """

    def __init__(
        self, train: IterableSource, val: Source, test: Source | None, steps_per_epoch: int, **options: Any
    ) -> None:
        super().__init__(val, test, prepare=None, **options)
        self._train = train
        self.steps_per_epoch = self.retrain_steps_per_epoch = steps_per_epoch

    def to(self, device: torch.device) -> None:
        """Later batches are prepared on ``device``; samples in memory move there now."""
        self._train.to(device)
        super().to(device)

    def _read(self, purpose: str, *keys: int, first: int = 0) -> Iterator[Batch]:
        batches = self._train.batches(self.steps_per_epoch, derive_seed(self._seed, f"{purpose} samples", *keys))
        return islice(batches, first, None)
