"""The helper that makes a task from datasets, loaders and streams of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fds_dist.common.batch import inputs_of
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, Whole
from fds_dist.common.options import kind_faults
from fds_dist.tasks.base import Loss, Metrics
from fds_dist.tasks.in_memory import Model, TensorTask, builder_of, pair_faults
from fds_dist.tasks.inspection import check_finite
from fds_dist.tasks.loaders import source_of
from fds_dist.tasks.reading import fits, items, pair_of_arrays, read_samples, stacked
from fds_dist.tasks.sampled import EVALUATION_BATCH, Augment, DrawnTask, SampledTask, StreamedTask
from fds_dist.tasks.sources import Collate, IterableSource, Source, StreamSource, TensorSource

DEFAULT_BATCH = 64

Samples = Dataset[Any] | Sequence[Any] | DataLoader[Any]
"""Datasets of samples, a pair ``(inputs, targets)`` of tensors, arrays or lists, or a `DataLoader`."""


def task_from_datasets(
    train: Samples,
    val: Samples | None = None,
    test: Samples | None = None,
    *,
    batch_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    collate: Collate | None = None,
    augment: Augment | None = None,
    workers: int | None = None,
    stream: bool | None = None,
    steps_per_epoch: int | None = None,
    loss: Loss = F.cross_entropy,
    val_loss: Loss | None = None,
    metrics: Metrics | None = None,
    model: Model | None = None,
) -> DrawnTask:
    """A task from datasets, from pairs ``(inputs, targets)``, or from `DataLoader`.

    A sample is an ``(x, y)`` pair or a mapping of tensors, arrays or numbers, of the same shape in all samples; samples
    are stacked to batches of the same structure. With ``collate`` they may be anything.

    Samples are read once, here, and stay in memory, or are read as they are asked for, anew in each epoch: those of a
    `DataLoader`, with ``collate`` or ``workers``, and those of a dataset that takes more than 1 GiB (its length times
    its first sample). ``stream`` decides otherwise. Read anew, a random transform is drawn anew; what a dataset draws
    from the global generators of torch, numpy and ``random`` depends on seed, outer step, epoch and batch alone.

    Of a `DataLoader` (``batch_size`` and ``shuffle``, no other sampler) the dataset, the batch size, the workers and
    ``collate_fn`` are used, in an order that seed, outer step and epoch determine.

    An iterable dataset with a length is read once. As ``train`` with ``steps_per_epoch`` it is streamed, and ``val`` is
    needed: each epoch starts it anew, with the global generators keyed by seed, outer step and epoch, and with a number
    that these determine as ``set_epoch``, where it has that. One that gives the same order whatever these are trains in
    that order.

    Args:
        batch_size: default: the `DataLoader`'s, or 64.
        collate: makes a batch of a list of samples.
        augment: a function of the inputs of a training batch (of all of it, where it is no pair) and a
            `torch.Generator`, whose seed depends on seed, outer step, epoch and batch. With a third parameter it is the
            task's `augment`, whose strength may be learned (see `Task`).
        workers: processes that read ahead; batches do not depend on their number. Default: the `DataLoader`'s, or 0.
        stream: True: samples are read as they are asked for; False: all are read here.
        steps_per_epoch: batches of an epoch of an iterable dataset.

    Raises `UserError` for other data, for samples that are another one when they are read again although they are read
    only once (a random transform, which would be frozen), and whatever `TensorTask` and `SampledTask` raise.
    """
    counts = {"workers": (Whole, workers), "steps_per_epoch": (Count, steps_per_epoch)}
    faults = [kind_faults(kind, value, f"task.{key}") for key, (kind, value) in counts.items() if value is not None]
    if any(faults):
        raise UserError(chain.from_iterable(faults))
    parts = {name: part for name, part in (("train", train), ("val", val), ("test", test)) if part is not None}
    reading = _Reading(collate, workers, stream)
    options: Any = {"seed": seed, "augment": augment, "loss": loss, "val_loss": val_loss, "metrics": metrics}
    if steps_per_epoch is not None:
        return _described(_streamed(parts, reading, batch_size, steps_per_epoch, options), model)
    options["val_fraction"] = val_fraction
    sources = {name: reading.source(part, name) for name, part in parts.items()}
    pairs = {name: pair for name, source in sources.items() if (pair := _pair_in_memory(source)) is not None}
    if len(pairs) == len(parts):
        options["batch_size"] = DEFAULT_BATCH if batch_size is None else batch_size
        return _in_memory(pairs, model, options)
    sizes = {name: part.batch_size for name, part in parts.items() if isinstance(part, DataLoader)}
    options["batch_size"] = batch_size or sizes.get("train") or DEFAULT_BATCH
    options["val_batch_size"] = sizes.get("val") or sizes.get("test") or EVALUATION_BATCH
    for name, source in sources.items():
        _check(source, name)
    return _described(SampledTask(**sources, **options), model)


def _in_memory(pairs: dict[str, Any], model: Model | None, options: dict[str, Any]) -> TensorTask:
    nothing = (None, None)
    val_inputs, val_targets = pairs.get("val", nothing)
    tensors = (*pairs["train"], *pairs.get("test", nothing))
    return TensorTask(*tensors, val_inputs=val_inputs, val_targets=val_targets, model=model, **options)


@dataclass(frozen=True)
class _Reading:
    """How the samples of `task_from_datasets` are read."""

    collate: Collate | None
    workers: int | None
    stream: bool | None

    def source(self, data: object, name: str) -> Source:
        """The samples of one part.

        Raises:
            UserError: they cannot be read so.
        """
        if isinstance(data, DataLoader):
            return source_of(data, name, self.workers, self.collate)
        if pair_of_arrays(data, name) is None and not isinstance(data, IterableDataset):
            if next(items(data, name), None) is None:
                raise UserError(Fault(f"task.{name}", "the dataset is empty", "at least one (x, y) pair"))
            if bool(self.collate or self.workers) or not fits(data, name) if self.stream is None else self.stream:
                dataset: Any = data
                return StreamSource(dataset, self.workers or 0, name, self.collate or stacked)
        if self.collate is not None:
            problem = f"has no use for the samples of {name}, which are read at once"
            raise UserError(Fault("task.collate", problem, "a map-style dataset or a DataLoader, without stream=False"))
        return TensorSource(read_samples(data, name))


def _streamed(
    parts: dict[str, Any], reading: _Reading, batch_size: int | None, steps: int, options: dict[str, Any]
) -> StreamedTask:
    """The task whose training data are an iterable dataset."""
    train: Any = parts.pop("train")
    collate, workers = reading.collate, reading.workers or 0
    if isinstance(train, DataLoader):
        batch_size, workers = batch_size or train.batch_size, workers or min(1, train.num_workers)
        train, collate = train.dataset, collate or train.collate_fn
    kind, faults = type(train).__name__, []
    if not isinstance(train, IterableDataset):
        problem = f"{steps} is of no use: {kind} is no iterable dataset, and all of its samples are used"
        faults.append(Fault("task.steps_per_epoch", problem, "none, or an IterableDataset"))
    if "val" not in parts:
        faults.append(Fault("task.val", f"is missing, and {kind} cannot be split", "validation data of their own"))
    if workers > 1:
        problem = f"{workers} would each read {kind} in their own way, so that batches depend on their number"
        faults.append(Fault("task.workers", problem, "0 or 1 with steps_per_epoch"))
    if faults:
        raise UserError(faults)
    sources = {name: replace(reading, workers=None).source(part, name) for name, part in parts.items()}
    stream = IterableSource(train, batch_size or DEFAULT_BATCH, workers, "train", collate or stacked)
    options = {**options, "val_batch_size": EVALUATION_BATCH}
    return StreamedTask(stream, sources["val"], sources.get("test"), steps, **options)


def _described(task: DrawnTask, model: Model | None) -> Any:
    """The task, which knows its network and the shape of its inputs where these are one tensor."""
    inputs = inputs_of(next(iter(task.val_batches(0))))
    if isinstance(inputs, Tensor):
        task.input_shape = tuple(inputs.shape[1:])
    if model is not None:
        task.build_model = builder_of(model)
    return task


def _pair_in_memory(source: Source) -> tuple[Tensor, Tensor] | None:
    samples = source.samples if isinstance(source, TensorSource) else None
    is_pair = isinstance(samples, tuple) and all(isinstance(part, Tensor) for part in samples)
    return samples if is_pair else None


def _check(source: Source, name: str) -> None:
    """That samples in memory are finite, and as many in all of their tensors."""
    if (pair := _pair_in_memory(source)) is not None:
        if faults := pair_faults("" if name == "train" else f"{name}_", *pair):
            raise UserError(faults)
    elif isinstance(source, TensorSource):
        check_finite(source.samples, f"task.{name}", "the samples")
