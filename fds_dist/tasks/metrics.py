"""Loss, accuracy and the task's own metrics as means over batches.

Shapes: B = samples of a batch, C = classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fds_dist.common.batch import Batch, samples_in, targets_of
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.tasks.base import Task
from fds_dist.tasks.losses import OnBatch

IGNORED = -100
"""The target that asks for no answer: the default `ignore_index` of torch's losses."""

ACCURACY = "accuracy"
"""The metric of a task that takes the place of the built-in accuracy."""


@dataclass(frozen=True)
class Score:
    """Means over the samples of some batches."""

    loss: float
    accuracy: float | None
    """Share of right answers; None where the task has no such metric and the built-in accuracy is not meant."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The task's other metrics."""


class Mean:
    """Loss, accuracy and metrics over batches; the sums stay on the device until they are read."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._names: tuple[str, ...] | None = None
        self._sums: Tensor | None = None  # [6 + metrics], as `_terms` has them
        self.samples = 0

    def add(self, loss: Tensor, output: object, batch: Batch, samples: int | None = None) -> int:
        """Takes a batch and returns the number of its samples.

        Args:
            loss: its mean loss [].
            samples: how many of them count; all, if it is None.

        Raises:
            UserError: the task's metrics are not numbers by name, or other ones than of the batch before.
        """
        count = samples_in(batch) if samples is None else samples
        metrics = task_metrics(self._task, output, batch)
        if self._names is None:
            self._names = tuple(metrics)
        if set(self._names) != set(metrics):
            first, other = (", ".join(names) or "nothing" for names in (self._names, metrics))
            problem = f"metrics(output, target) returned {first} for one batch and {other} for another"
            raise UserError(Fault("task.metrics", problem, "the same names for all"))
        self.samples += count
        terms = _terms(loss, output, targets_of(batch), [metrics[name] for name in self._names], count)
        if count or self._sums is None:
            # What does not count may be NaN, which is no less when it is multiplied by 0.
            terms = terms if count else torch.zeros_like(terms)
            self._sums = terms if self._sums is None else self._sums + terms
        return count

    def score(self, over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums) -> Score:
        """The means over all batches so far, of which there is one at least.

        Args:
            over_ranks: adds a vector of sums up over the ranks that saw the other parts of the batches.
        """
        assert self._sums is not None and self._names is not None
        loss, samples, right, asked, stray, unscored, *metrics = over_ranks(self._sums).tolist()
        means = {name: total / samples for name, total in zip(self._names, metrics, strict=True)}
        builtin = None if stray or unscored or not asked else right / asked
        return Score(loss / samples, means.pop(ACCURACY, builtin), means)


def _terms(loss: Tensor, output: object, targets: object, metrics: list[Tensor], count: int) -> Tensor:
    """What a batch adds: loss, samples; right answers, answers asked for, targets that are no classes, batches without
    scores of classes; metrics."""
    zero = torch.zeros((), dtype=torch.float64, device=loss.device)
    answers = class_answers(output, targets)
    counted = [zero, zero, zero, zero + 1] if answers is None else [*answers.to(loss.device).double(), zero]
    weighed = [metric.to(zero) * count for metric in metrics]
    return torch.stack([loss.detach().to(zero) * count, zero + count, *counted, *weighed])


def class_answers(output: object, targets: object) -> Tensor | None:
    """Counts [3] of a batch: right answers, answers asked for, and targets that are no class.

    None unless `output` [B, C ≥ 2] is in floating point and `targets` [B] are whole numbers: anything else may be
    scores of classes in another layout, or none at all.
    """
    scores = isinstance(output, Tensor) and output.is_floating_point() and output.dim() == 2 and output.shape[1] > 1
    if not (isinstance(output, Tensor) and scores and isinstance(targets, Tensor)):
        return None
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not whole or targets.shape != output.shape[:1]:
        return None
    targets = targets.long()
    asked = targets != IGNORED
    stray = asked & ((targets < 0) | (targets >= output.shape[1]))
    right = output.detach().argmax(1) == targets
    return torch.stack([right.sum(), asked.sum(), stray.sum()])


def task_metrics(task: Task, output: object, batch: Batch) -> dict[str, Tensor]:
    """The task's own metrics [] of a batch by name; none where the task has no `metrics`.

    Raises:
        UserError: they fail, or are not numbers by name; names `task.metrics`.
    """
    metrics: Callable[..., object] | None = getattr(task, "metrics", None)
    if metrics is None:
        return {}
    what, detached = "metrics(output, target)", tree_map_only(Tensor, Tensor.detach, output)
    with user_code("task.metrics", what), torch.no_grad():
        values = OnBatch(metrics)(detached, batch)
    expected = "{name: number} of floats or 0-d tensors, each the mean over the batch"
    if not isinstance(values, Mapping):
        raise UserError(Fault("task.metrics", f"{what} returned a {type(values).__name__}", expected))
    return {_name(name, expected): _number(str(name), value, expected) for name, value in values.items()}


def _name(name: object, expected: str) -> str:
    if isinstance(name, str) and name:
        return name
    raise UserError(Fault("task.metrics", f"metrics(output, target) returned the name {name!r}", expected))


def _number(name: str, value: Any, expected: str) -> Tensor:
    try:
        number = torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number.shape != () or isinstance(value, str):
        kind = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(Fault("task.metrics", f"{name!r} of metrics(output, target) is {kind}", expected))
    return number
