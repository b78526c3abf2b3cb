"""A task over tensors in memory, and the helper that makes one from datasets of ``(x, y)`` pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.options import value_faults
from fds_dist.common.randomness import build_seeded, reinitialized
from fds_dist.tasks.base import Loss, Metrics
from fds_dist.tasks.sampled import EVALUATION_BATCH, Augment, Prepare, SampledTask, TensorSource

Model = nn.Module | Callable[[int], nn.Module]


class TensorTask(SampledTask):
    """A task over tensors in memory: ``inputs`` (N×input shape) and ``targets`` (N×target shape).

    Splits, batches, ``prepare`` and ``augment`` are those of `SampledTask`; with ``val_inputs`` and ``val_targets``,
    no split is drawn. Whole numbers as one-dimensional targets are class labels: they become int64 and the task has
    ``classes``.

    ``model`` becomes ``build_model``: a function of a seed is called with torch's global generator seeded too; of a
    plain module a copy is drawn afresh (see `reinitialized`).

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
            self.build_model = partial(reinitialized if isinstance(model, nn.Module) else build_seeded, model)


def task_from_datasets(
    train: Dataset[object] | Sequence[object],
    val: Dataset[object] | Sequence[object] | None = None,
    test: Dataset[object] | Sequence[object] | None = None,
    *,
    batch_size: int = 64,
    val_fraction: float = 0.1,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    val_loss: Loss | None = None,
    metrics: Metrics | None = None,
    model: Model | None = None,
) -> TensorTask:
    """A `TensorTask` from map-style datasets of ``(x, y)`` pairs, or from pairs of tensors ``(inputs, targets)``.

    Every sample is read once, here, and stays in memory: the data must fit there, and a random augmentation inside a
    dataset would be frozen. ``x`` and ``y`` may be tensors, arrays or numbers, of the same shape in all samples.

    Raises `UserError` for what is not a dataset of pairs, and whatever `TensorTask` raises.
    """
    inputs, targets = _stack(train, "train")
    val_inputs, val_targets = (None, None) if val is None else _stack(val, "val")
    test_inputs, test_targets = (None, None) if test is None else _stack(test, "test")
    return TensorTask(
        inputs,
        targets,
        test_inputs,
        test_targets,
        batch_size=batch_size,
        val_fraction=val_fraction,
        val_inputs=val_inputs,
        val_targets=val_targets,
        seed=seed,
        loss=loss,
        val_loss=val_loss,
        metrics=metrics,
        model=model,
    )


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
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        shapes = f"shapes {tuple(inputs.shape)} and {tuple(targets.shape)} of {' and '.join(names)} do not match"
        return [Fault(f"task.{names[1]}", shapes, "the same number of samples, at least 1, along dimension 0")]
    return []


class _Pairs(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


def _stack(data: object, name: str) -> Batch:
    """All samples of a dataset as one pair of tensors."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return data[0], data[1]
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        problem = f"{type(data).__name__} has no length or no indexing"
        raise UserError(Fault(f"task.{name}", problem, "a map-style dataset of (x, y) pairs or a pair of tensors"))
    pairs = cast(_Pairs, data)
    if len(pairs) == 0:
        raise UserError(Fault(f"task.{name}", "the dataset is empty", "at least one (x, y) pair"))
    samples = [_sample(pairs[index], name, index) for index in range(len(pairs))]
    first = samples[0]
    for index, sample in enumerate(samples):
        for part, here, there in zip("xy", sample, first, strict=True):
            if here.shape != there.shape:
                problem = (
                    f"{part} of sample {index} has shape {tuple(here.shape)}, that of sample 0 {tuple(there.shape)}"
                )
                raise UserError(Fault(f"task.{name}", problem, "one shape for all samples"))
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def _sample(pair: object, name: str, index: int) -> Batch:
    expected = "an (x, y) pair of tensors, arrays or numbers"
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        kind = f"{len(pair)} parts" if isinstance(pair, (tuple, list)) else f"a {type(pair).__name__}"
        raise UserError(Fault(f"task.{name}", f"sample {index} is {kind}", expected))
    try:
        return torch.as_tensor(pair[0]), torch.as_tensor(pair[1])
    except (TypeError, ValueError, RuntimeError):
        kinds = f"({type(pair[0]).__name__}, {type(pair[1]).__name__})"
        raise UserError(Fault(f"task.{name}", f"sample {index} is {kinds}", expected)) from None
