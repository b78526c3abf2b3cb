"""What the engine asks of a task, and how to read and check the object a user hands in."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor

from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault
from fds_dist.common.registry import is_positive_int
from fds_dist.tasks.losses import OnBatch, binds, signature_of

Loss = Callable[..., Tensor]
OUTPUT_TARGET = ("output", "target")
"""The arguments of losses and metrics, one of which may be `batch`: see `OnBatch`."""
Metrics = Callable[..., Mapping[str, "float | Tensor"]]


class Task(Protocol):
    """Data and loss of the inner problem. Batches are functions of the arguments and the task's seed alone, whatever
    the rank and however often they are asked for. See `Batch` for what a batch may be: inputs that are a mapping are
    passed to the network as keywords, a tuple or list as positions, all else as one argument.

    The losses and metrics get the network's output, whatever it is (a tensor, a tuple, a mapping or any object), and
    the targets; one with a parameter ``batch`` gets the whole batch: ``loss(output, batch)`` instead of the targets,
    ``loss(output, target, batch)`` beside them.

    Optional attributes, which an object may have or not:

    - ``val_loss(output, target) -> Tensor``: for validation and test, where it is not ``loss``; needed where ``loss``
      takes a third parameter (see `validation_loss`).
    - ``metrics(output, target) -> {name: float or 0-d tensor}``: figures for people, each the mean over the batch; they
      are averaged over samples. ``accuracy`` takes the place of the built-in one, which is given only where the
      output is [B, C ≥ 2] in floating point and the target [B] class indices (or -100, which asks for no answer).
    - ``augment(inputs, generator, h) -> inputs``: changes the inputs of each training batch, never those of validation
      or test, on the device, in the dtype of the run. All random numbers come from the `torch.Generator`, which is on
      the device of the inputs and keyed by (seed, outer step, step): the whole batch's are the same on all ranks and in
      every pass. ``h`` is ``{name: value}`` of the hyperparameters that are not the optimizer's; derivatives pass
      through what is done with them. The loss sees the batch as it was.
    - ``build_model(seed: int) -> nn.Module``: used where the config has no ``model:``.
    - ``input_shape: tuple[int, ...]``: shape of one sample, without the batch dimension.
    - ``classes: int``: number of outputs of a classifier.
    - ``retrain_batches(epoch: int) -> Iterable[Batch]`` and ``retrain_steps_per_epoch: int``: an epoch over all data
      for training and validation, and its number of batches, for training with a schedule that is already learned;
      without them that takes ``train_batches``.
    - ``val_overlap: bool``: whether ``train_batches`` give the validation samples, too, so that training with a learned
      schedule can hold none out.
    - ``to(device: torch.device) -> object``: moves data that are in memory to the device, once, before the first batch;
      without it every batch is moved.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Batches that ``train_batches`` yields."""
        ...

    @property
    def loss(self) -> Loss:
        """``loss(output, target)``, a scalar mean over the batch. With a third parameter it gets ``{name: value}`` of
        the hyperparameters that are the loss's own."""
        ...

    def train_batches(self, outer_step: int, epoch: int) -> Iterable[Batch]: ...

    def val_batches(self, outer_step: int) -> Iterable[Batch]: ...

    def test_batches(self) -> Iterable[Batch]: ...


def validation_loss(task: Task) -> Loss:
    """``task.val_loss`` where there is one, else ``task.loss``; see `OnBatch`."""
    return getattr(task, "val_loss", None) or task.loss


def loss_takes_hyperparameters(task: Task) -> bool:
    """Whether ``task.loss`` has a positional parameter without a default beside those for output, target and batch."""
    return OnBatch(task.loss).required == 3


def takes_hyperparameters(task: Task) -> bool:
    """Whether hyperparameters may be the task's own: of its loss, or of its ``augment``."""
    return loss_takes_hyperparameters(task) or getattr(task, "augment", None) is not None


def task_faults(task: object) -> list[Fault]:
    """Everything that is missing from ``task`` or of the wrong kind, one fault per member; none if it is a `Task`."""
    checks = [
        _function_fault(task, "train_batches", ("outer_step", "epoch")),
        _function_fault(task, "val_batches", ("outer_step",)),
        _function_fault(task, "test_batches", ()),
        _value_fault(task, "steps_per_epoch", is_positive_int, "a whole number of at least 1"),
        _loss_fault(task),
        _val_loss_fault(task),
        _function_fault(task, "augment", ("inputs", "generator", "h"), optional=True),
        _function_fault(task, "metrics", OUTPUT_TARGET, optional=True),
        _function_fault(task, "build_model", ("seed",), optional=True),
        _function_fault(task, "retrain_batches", ("epoch",), optional=True),
        _retrain_steps_fault(task),
        _value_fault(task, "val_overlap", lambda value: isinstance(value, bool), "true or false", optional=True),
        _function_fault(task, "to", ("device",), optional=True),
        _value_fault(task, "input_shape", _is_shape, "a tuple of whole numbers of at least 1", optional=True),
        _value_fault(task, "classes", is_positive_int, "a whole number of at least 1", optional=True),
    ]
    return [Fault(f"task.{fault.key}", fault.problem, fault.expected) for fault in checks if fault is not None]


def _value_fault(
    task: object, name: str, is_right: Callable[[object], bool], expected: str, optional: bool = False
) -> Fault | None:
    value = getattr(task, name, None)
    if value is None:
        return None if optional else Fault(name, "missing", expected)
    return None if is_right(value) else Fault(name, f"{reprlib.repr(value)} is not valid", expected)


def _function_fault(task: object, name: str, arguments: tuple[str, ...], optional: bool = False) -> Fault | None:
    expected = f"a function {name}({', '.join(arguments)})"
    value = getattr(task, name, None)
    if value is None:
        return None if optional else Fault(name, "missing", expected)
    if not callable(value):
        return Fault(name, f"{reprlib.repr(value)} cannot be called", expected)
    accepted = OnBatch(value).accepts() if arguments == OUTPUT_TARGET else _accepts(value, len(arguments))
    if not accepted:
        return Fault(name, f"cannot be called with {len(arguments)} arguments", expected)
    return None


def _loss_fault(task: object) -> Fault | None:
    loss = getattr(task, "loss", None)
    if callable(loss) and OnBatch(loss).accepts(more=1):
        return None  # two parameters and an optional third, or three
    return _function_fault(task, "loss", OUTPUT_TARGET)


def _val_loss_fault(task: object) -> Fault | None:
    loss = getattr(task, "loss", None)
    needed = callable(loss) and OnBatch(loss).required == 3
    if needed and getattr(task, "val_loss", None) is None:
        return Fault(
            "val_loss",
            "missing, and loss takes a third parameter",
            "a function val_loss(output, target) for validation and test",
        )
    return _function_fault(task, "val_loss", OUTPUT_TARGET, optional=True)


def _retrain_steps_fault(task: object) -> Fault | None:
    alone = getattr(task, "retrain_batches", None) is None
    expected = "a whole number of at least 1, the batches of retrain_batches"
    return _value_fault(task, "retrain_steps_per_epoch", is_positive_int, expected, optional=alone)


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and all(is_positive_int(side) for side in value)


def _accepts(function: Callable[..., object], arguments: int) -> bool:
    """Whether ``function`` can be called with that many positional arguments."""
    signature = signature_of(function)
    return signature is None or binds(signature, *range(arguments))
