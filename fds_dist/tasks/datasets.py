"""A task over tensors in memory, and the helper that makes one from datasets of ``(x, y)`` pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.options import value_faults
from fds_dist.common.randomness import build_seeded
from fds_dist.tasks.base import Loss, Metrics
from fds_dist.tasks.inspection import FINITE, non_finite
from fds_dist.tasks.loaders import source_of
from fds_dist.tasks.reading import read_samples
from fds_dist.tasks.sampled import EVALUATION_BATCH, Augment, Prepare, SampledTask, TensorSource

Model = nn.Module | Callable[[int], nn.Module]
DEFAULT_BATCH = 64


class TensorTask(SampledTask):
    """A task over tensors in memory: ``inputs`` (N×input shape) and ``targets`` (N×target shape).

    Splits, batches, ``prepare`` and ``augment`` are those of `SampledTask`; with ``val_inputs`` and ``val_targets``,
    no split is drawn. Whole numbers as one-dimensional targets are class labels: they become int64 and the task has
    ``classes``.

    ``model`` becomes ``build_model``: a function of a seed is called with the global generators seeded too; a plain
    module is returned as it is, for every seed.

    Raises `UserError` with every fault in the arguments.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        test_inputs: Tensor | None = None,
        test_targets: Tensor | None = None,
        *,
        batch_size: int,
        val_fraction: float = 0.1,
        val_overlap: bool = False,
        val_batch_size: int = EVALUATION_BATCH,
        val_inputs: Tensor | None = None,
        val_targets: Tensor | None = None,
        seed: int = 0,
        prepare: Prepare | None = None,
        augment: Augment | None = None,
        loss: Loss = F.cross_entropy,
        val_loss: Loss | None = None,
        metrics: Metrics | None = None,
        model: Model | None = None,
    ) -> None:
        sampling: dict[str, Any] = {
            "batch_size": batch_size,
            "val_fraction": val_fraction,
            "val_overlap": val_overlap,
            "val_batch_size": val_batch_size,
            "seed": seed,
        }
        pairs = {"": (inputs, targets), "val_": (val_inputs, val_targets), "test_": (test_inputs, test_targets)}
        faults = [fault for part, pair in pairs.items() for fault in _pair_faults(part, *pair)]
        faults += value_faults(SampledTask, sampling, "task")
        if faults:
            raise UserError(faults)
        train = TensorSource(inputs, _labels_as_int64(targets))
        val, test = _source(val_inputs, val_targets), _source(test_inputs, test_targets)
        functions = {"prepare": prepare, "augment": augment, "loss": loss, "val_loss": val_loss, "metrics": metrics}
        super().__init__(train, val, test, **sampling, **functions)  # type: ignore[arg-type]
        self.input_shape = tuple(inputs.shape[1:])
        if _are_labels(targets):
            self.classes = 1 + max(int(source.targets.max()) for source in (train, val, test) if source is not None)
        if model is not None:
            self.build_model = _builder(model)


Samples = Dataset[Any] | Sequence[Any] | DataLoader[Any]
"""Datasets of ``(x, y)`` pairs, a pair ``(inputs, targets)`` of tensors, arrays or lists, or a `DataLoader`."""


def task_from_datasets(
    train: Samples,
    val: Samples | None = None,
    test: Samples | None = None,
    *,
    batch_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    augment: Augment | None = None,
    loss: Loss = F.cross_entropy,
    val_loss: Loss | None = None,
    metrics: Metrics | None = None,
    model: Model | None = None,
) -> SampledTask:
    """A task from datasets of ``(x, y)`` pairs, from pairs ``(inputs, targets)``, or from `DataLoader`.

    The samples of datasets and pairs are read once, here, and stay in memory. ``x`` and ``y`` may be tensors, arrays or
    numbers, of the same shape in all samples. An iterable dataset must have a length.

    Of a `DataLoader` (``batch_size`` and ``shuffle``, no other sampler) the dataset, the batch size, the workers and
    ``collate_fn`` are used: samples are read anew in each epoch, so that random transforms are drawn anew, and in an
    order that seed, outer step and epoch determine.

    Args:
        batch_size: default: the `DataLoader`'s, or 64.
        augment: a function of the inputs of a training batch and a `torch.Generator`.

    Raises `UserError` for other data, for samples that are another one when they are read again (a random transform,
    which would be frozen), and whatever `TensorTask` and `SampledTask` raise.
    """
    parts = {name: part for name, part in (("train", train), ("val", val), ("test", test)) if part is not None}
    functions: Any = {"augment": augment, "loss": loss, "val_loss": val_loss, "metrics": metrics}
    options: Any = {"val_fraction": val_fraction, "seed": seed, **functions}
    loaders = {name: part for name, part in parts.items() if isinstance(part, DataLoader)}
    if loaders:
        sizes = {name: loader.batch_size for name, loader in loaders.items()}
        options["batch_size"] = batch_size or sizes.get("train") or DEFAULT_BATCH
        options["val_batch_size"] = sizes.get("val") or sizes.get("test") or EVALUATION_BATCH
        sources: Any = {
            name: source_of(part, name) if isinstance(part, DataLoader) else _read_source(part, name)
            for name, part in parts.items()
        }
        task = SampledTask(**sources, **options)
        inputs, _ = next(iter(task.val_batches(0)))
        task.input_shape = tuple(inputs.shape[1:])
        if model is not None:
            task.build_model = _builder(model)
        return task
    read = {name: read_samples(part, name) for name, part in parts.items()}
    nothing = (None, None)
    tensors = (*read["train"], *read.get("test", nothing))
    val_inputs, val_targets = read.get("val", nothing)
    options["batch_size"] = DEFAULT_BATCH if batch_size is None else batch_size
    return TensorTask(*tensors, val_inputs=val_inputs, val_targets=val_targets, model=model, **options)


def _read_source(data: object, name: str) -> TensorSource:
    inputs, targets = read_samples(data, name)
    if faults := _pair_faults("" if name == "train" else f"{name}_", inputs, targets):
        raise UserError(faults)
    return TensorSource(inputs, _labels_as_int64(targets))


def _builder(model: Model) -> Callable[[int], nn.Module]:
    return partial(build_seeded, (lambda seed: model) if isinstance(model, nn.Module) else model)


def _are_labels(targets: Tensor) -> bool:
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return whole and targets.dim() == 1


def _labels_as_int64(targets: Tensor) -> Tensor:
    return targets.long() if _are_labels(targets) else targets


def _source(inputs: Tensor | None, targets: Tensor | None) -> TensorSource | None:
    return None if inputs is None or targets is None else TensorSource(inputs, _labels_as_int64(targets))


def _pair_faults(part: str, inputs: Tensor | None, targets: Tensor | None) -> list[Fault]:
    names = f"{part}inputs", f"{part}targets"
    if part and inputs is None and targets is None:
        return []
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
        return [
            Fault(f"task.{name}", f"{type(value).__name__} is not a tensor", "a tensor")
            for name, value in zip(names, (inputs, targets), strict=True)
            if not isinstance(value, Tensor)
        ]
    if 0 in inputs.shape[:1] or 0 in targets.shape[:1]:
        return [Fault(f"task.{names[0]}", f"there are no samples in {' and '.join(names)}", "at least one")]
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
        shapes = f"shapes {tuple(inputs.shape)} and {tuple(targets.shape)} of {' and '.join(names)} do not match"
        return [Fault(f"task.{names[1]}", shapes, "the same number of samples, at least 1, along dimension 0")]
    problems = ((name, non_finite(tensor)) for name, tensor in zip(names, (inputs, targets), strict=True))
    return [Fault(f"task.{name}", problem, FINITE) for name, problem in problems if problem]
