"""A task over tensors in memory, and the helper that makes one from datasets of ``(x, y)`` pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fds_dist.faults import Fault, UserError
from fds_dist.randomness import generator, seeded
from fds_dist.tasks.base import Batch, Loss, is_count

EVALUATION_BATCH = 500  # samples per validation and test batch, at most
Model = nn.Module | Callable[[int], nn.Module]


class TensorTask:
    """A task over tensors in memory: ``inputs`` (N×input shape) and ``targets`` (N×target shape).

    Without validation data of its own, each outer step draws another validation split from the N samples, a share of
    ``val_fraction``; the rest is for training. A training epoch is a permutation of that rest, keyed by (seed, outer
    step, epoch), whose last partial batch is dropped. Validation and test yield every sample once. Without test data
    ``test_batches`` yields nothing. Whole numbers as one-dimensional targets are class labels: they become int64 and
    the task has ``classes``.

    ``model`` becomes ``build_model``: a function of a seed is called with torch's global generator seeded too; of a
    plain module a copy is drawn afresh (see `reinitialized`).

    Raises `UserError` with every fault in the arguments.
    """

    steps_per_epoch: int
    input_shape: tuple[int, ...]
    classes: int  # only where the targets are class labels
    loss: Loss
    val_loss: Loss  # only where given
    build_model: Callable[[int], nn.Module]  # only where a model was given

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        test_inputs: Tensor | None = None,
        test_targets: Tensor | None = None,
        *,
        batch_size: int,
        val_fraction: float = 0.1,
        val_inputs: Tensor | None = None,
        val_targets: Tensor | None = None,
        seed: int = 0,
        loss: Loss = F.cross_entropy,
        val_loss: Loss | None = None,
        model: Model | None = None,
    ) -> None:
        faults = [
            *_pair_faults("", inputs, targets),
            *_pair_faults("val_", val_inputs, val_targets),
            *_pair_faults("test_", test_inputs, test_targets),
            *_option_faults(batch_size, val_fraction),
        ]
        if faults:
            raise UserError(faults)
        self._train = _labels_as_int64(inputs, targets)
        self._val = _labels_as_int64(val_inputs, val_targets)
        self._test = _labels_as_int64(test_inputs, test_targets)
        self._seed = seed
        self._batch_size = batch_size
        self._val_samples = max(1, round(val_fraction * len(inputs))) if val_inputs is None else 0
        train_samples = len(inputs) - self._val_samples
        if batch_size > train_samples:
            expected = f"at most {train_samples}, the samples left for training"
            raise UserError(Fault("task.batch_size", f"{batch_size} is too large", expected))

        self.steps_per_epoch = train_samples // batch_size
        self.input_shape = tuple(inputs.shape[1:])
        if _are_labels(targets):
            self.classes = 1 + max(int(y.max()) for _, y in (self._train, self._val, self._test) if len(y))
        self.loss = loss
        if val_loss is not None:
            self.val_loss = val_loss
        if model is not None:
            self.build_model = partial(reinitialized if isinstance(model, nn.Module) else _build_seeded, model)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Batch]:
        train = self._split(outer_step)[self._val_samples :]
        order = torch.randperm(len(train), generator=generator(self._seed, "train batches", outer_step, epoch))
        used = self.steps_per_epoch * self._batch_size
        return _batches(self._train, train[order[:used]], self._batch_size)

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        if self._val_samples:
            return _batches(self._train, self._split(outer_step)[: self._val_samples], EVALUATION_BATCH)
        return _batches(self._val, torch.arange(len(self._val[0])), EVALUATION_BATCH)

    def test_batches(self) -> Iterator[Batch]:
        return _batches(self._test, torch.arange(len(self._test[0])), EVALUATION_BATCH)

    def _split(self, outer_step: int) -> Tensor:
        """Indices of all samples, those for validation first."""
        return torch.randperm(len(self._train[0]), generator=generator(self._seed, "validation split", outer_step))


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
    model: Model | None = None,
) -> TensorTask:
    """A `TensorTask` from map-style datasets of ``(x, y)`` pairs, or from pairs of tensors ``(inputs, targets)``.

    Every sample is read once, here, and kept: this is for data that fits in memory, and a random augmentation inside a
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
        model=model,
    )


def reinitialized(module: nn.Module, seed: int) -> nn.Module:
    """A copy of ``module`` with fresh weights: ``reset_parameters()`` of each submodule that has it, under ``seed``.

    Parameters of no such submodule keep their values. Torch's global generators are left as they were.
    """
    fresh = copy.deepcopy(module)
    with seeded(seed):
        for submodule in fresh.modules():
            reset = getattr(submodule, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def _build_seeded(function: Callable[[int], nn.Module], seed: int) -> nn.Module:
    with seeded(seed):
        return function(seed)


def _batches(data: Batch, indices: Tensor, size: int) -> Iterator[Batch]:
    inputs, targets = data
    return ((inputs[chunk], targets[chunk]) for chunk in indices.split(size) if len(chunk))


def _are_labels(targets: Tensor) -> bool:
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return whole and targets.dim() == 1


def _labels_as_int64(inputs: Tensor | None, targets: Tensor | None) -> Batch:
    if inputs is None or targets is None:
        return torch.empty(0), torch.empty(0)
    return inputs, targets.long() if _are_labels(targets) else targets


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


def _option_faults(batch_size: object, val_fraction: object) -> list[Fault]:
    faults = []
    if not is_count(batch_size):
        faults.append(Fault("task.batch_size", f"{batch_size!r} is not valid", "a whole number of at least 1"))
    if not (isinstance(val_fraction, float) and 0 < val_fraction < 1):
        faults.append(Fault("task.val_fraction", f"{val_fraction!r} is not valid", "a number between 0 and 1"))
    return faults


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
