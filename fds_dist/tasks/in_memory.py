"""A task over tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.options import value_faults
from fds_dist.common.randomness import build_seeded
from fds_dist.tasks.augmentation import Augmentation
from fds_dist.tasks.base import Loss, Metrics
from fds_dist.tasks.inspection import FINITE, non_finite
from fds_dist.tasks.reading import are_labels
from fds_dist.tasks.sampled import EVALUATION_BATCH, Augment, Prepare, SampledTask
from fds_dist.tasks.sources import TensorSource

Model = nn.Module | Callable[[int], nn.Module]


class TensorTask(SampledTask):
    """A task over tensors in memory: ``inputs`` (N×input shape) and ``targets`` (N×target shape).

    Splits, batches, ``prepare`` and ``augment`` are those of `SampledTask`; with ``val_inputs`` and ``val_targets``,
    no split is drawn. Whole numbers as one-dimensional targets are class labels: they become int64 and the task has
    ``classes``.

    ``draws_nothing``: whether batches draw nothing from the global generators, as no function of a user's own runs.

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
        faults = [fault for part, pair in pairs.items() for fault in pair_faults(part, *pair)]
        faults += value_faults(SampledTask, sampling, "task")
        if faults:
            raise UserError(faults)
        train = TensorSource((inputs, _labels_as_int64(targets)))
        val, test = _source(val_inputs, val_targets), _source(test_inputs, test_targets)
        functions = {"prepare": prepare, "augment": augment, "loss": loss, "val_loss": val_loss, "metrics": metrics}
        super().__init__(train, val, test, **sampling, **functions)  # type: ignore[arg-type]
        self.draws_nothing = prepare is None and (augment is None or isinstance(augment, Augmentation))
        self.input_shape = tuple(inputs.shape[1:])
        if are_labels(targets):
            parts = [part for part in (targets, val_targets, test_targets) if part is not None]
            self.classes = 1 + max(int(part.max()) for part in parts)
        if model is not None:
            self.build_model = builder_of(model)

    def train_batches_from(self, outer_step: int, epoch: int, first: int) -> Iterator[Batch]:
        """Those of `train_batches` from number ``first`` on; those before are not made."""
        return self._augmented("train", outer_step, epoch, first=first)


def draws_nothing(task: object) -> bool:
    """Whether no batch of ``task`` draws from the global generators. Subclasses may, and tasks around others."""
    return type(task) is TensorTask and task.draws_nothing


def builder_of(model: Model) -> Callable[[int], nn.Module]:
    """seed → the module: what `build_model` of a task is."""
    return partial(build_seeded, (lambda seed: model) if isinstance(model, nn.Module) else model)


def _labels_as_int64(targets: Tensor) -> Tensor:
    return targets.long() if are_labels(targets) else targets


def _source(inputs: Tensor | None, targets: Tensor | None) -> TensorSource | None:
    return None if inputs is None or targets is None else TensorSource((inputs, _labels_as_int64(targets)))


def pair_faults(part: str, inputs: Tensor | None, targets: Tensor | None) -> list[Fault]:
    """What is wrong with the inputs and targets of a part, `val_`: "" is the training part."""
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
