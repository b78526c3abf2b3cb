"""What the engine asks of a task, and how to read and check the object a user hands in."""

from __future__ import annotations

import inspect
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn

from fds_dist.faults import Fault, UserError

Batch = tuple[Tensor, Tensor]  # (inputs, targets), samples along dimension 0 of both
Loss = Callable[..., Tensor]


class Task(Protocol):
    """Data and loss of the inner problem. Batches are functions of the arguments and the task's seed alone, whatever
    the rank and however often they are asked for.

    Optional attributes, which an object may have or not:

    - ``val_loss(output, target) -> Tensor``: for validation and test, where it is not ``loss``; needed where ``loss``
      takes a third parameter (see `validation_loss`).
    - ``build_model(seed: int) -> nn.Module``: used where the config has no ``model:``.
    - ``input_shape: tuple[int, ...]``: shape of one sample, without the batch dimension.
    - ``classes: int``: number of outputs of a classifier.
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
    """``task.val_loss`` where there is one, else ``task.loss``: a function of ``(output, target)``."""
    return getattr(task, "val_loss", None) or task.loss


def loss_takes_hyperparameters(task: Task) -> bool:
    """Whether ``task.loss`` has a third positional parameter without a default."""
    return len(_required_parameters(task.loss)) == 3


def is_count(value: object) -> bool:
    """Whether ``value`` is a whole number of at least 1 (``True`` is not one)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def task_faults(task: object, key: str = "task") -> list[Fault]:
    """Everything that is missing from ``task`` or of the wrong kind, one fault per member; none if it is a `Task`."""
    checks = [
        _function_fault(task, "train_batches", ("outer_step", "epoch")),
        _function_fault(task, "val_batches", ("outer_step",)),
        _function_fault(task, "test_batches", ()),
        _value_fault(task, "steps_per_epoch", is_count, "a whole number of at least 1"),
        _loss_fault(task),
        _val_loss_fault(task),
        _function_fault(task, "build_model", ("seed",), optional=True),
        _value_fault(task, "input_shape", _is_shape, "a tuple of whole numbers of at least 1", optional=True),
        _value_fault(task, "classes", is_count, "a whole number of at least 1", optional=True),
    ]
    return [Fault(f"{key}.{fault.key}", fault.problem, fault.expected) for fault in checks if fault is not None]


def with_offers(
    function: Callable[..., object], options: Mapping[str, object], offers: Mapping[str, object]
) -> dict[str, object]:
    """``options``, and of ``offers`` what ``function`` has a parameter for and ``options`` does not set; None offers
    nothing."""
    taken = {
        name: offers[name] for name in _parameters(function) if offers.get(name) is not None and name not in options
    }
    return {**taken, **options}


def call_user_function(function: Callable[..., object], arguments: Mapping[str, object], key: str) -> object:
    """``function(**arguments)``; an exception inside becomes a `UserError` that tells what was raised and where."""
    try:
        return function(**arguments)
    except UserError:
        raise
    except Exception as error:
        name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this function's
        # Of what it calls, the deepest line in the user's own file tells most.
        own = [frame for frame in frames if frame.filename == frames[0].filename]
        where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise UserError(Fault(key, f"{name} raised {type(error).__name__}: {error}{where}")) from error


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
    if not _accepts(value, len(arguments)):
        return Fault(name, f"cannot be called with {len(arguments)} arguments", expected)
    return None


def _loss_fault(task: object) -> Fault | None:
    loss = getattr(task, "loss", None)
    if callable(loss) and _accepts(loss, 3):
        return None  # two parameters and an optional third, or three
    return _function_fault(task, "loss", ("output", "target"))


def _val_loss_fault(task: object) -> Fault | None:
    loss = getattr(task, "loss", None)
    needed = callable(loss) and len(_required_parameters(loss)) == 3
    if needed and getattr(task, "val_loss", None) is None:
        return Fault(
            "val_loss",
            "missing, and loss takes a third parameter",
            "a function val_loss(output, target) for validation and test",
        )
    return _function_fault(task, "val_loss", ("output", "target"), optional=True)


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and all(is_count(side) for side in value)


def _signature(function: Callable[..., object]) -> inspect.Signature | None:
    """None for the few built-in functions that do not tell."""
    # A module's __call__ hides the parameters of its forward behind *args.
    visible = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(visible)
    except (TypeError, ValueError):
        return None


def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    signature = _signature(function)
    return {} if signature is None else signature.parameters


def _required_parameters(function: Callable[..., object]) -> list[str]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        name
        for name, parameter in _parameters(function).items()
        if parameter.kind in positional and parameter.default is inspect.Parameter.empty
    ]


def _accepts(function: Callable[..., object], arguments: int) -> bool:
    """Whether ``function`` can be called with that many positional arguments."""
    signature = _signature(function)
    if signature is None:
        return True
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True
