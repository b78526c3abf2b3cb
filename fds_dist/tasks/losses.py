"""A task's functions of the network's output and a batch: its losses and metrics, by the names of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fds_dist.common.batch import Batch, targets_of

BATCH = "batch"
"""The parameter that gets the whole batch."""


class OnBatch:
    """A function of `(output, target)`, such as a loss, as one of `(output, batch)`.

    A parameter called `batch` gets the whole batch: `f(output, target, batch)`, or in the target's place
    `f(output, batch)`. What follows, such as a loss's hyperparameters, comes after these.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        signature = signature_of(function)
        parameters = {} if signature is None else signature.parameters
        names = [name for name, parameter in parameters.items() if parameter.kind in _POSITIONAL]
        self.takes_batch = BATCH in parameters
        self._place = names.index(BATCH) if BATCH in names else None
        others = [name for name in names if name != BATCH]
        variadic = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values())
        self._takes_target = not self.takes_batch or (self._place != 1 and (len(others) > 1 or variadic))
        required = [name for name in others if parameters[name].default is inspect.Parameter.empty]
        self.required = len(required) + (0 if self._takes_target else 1)
        """Parameters without a default, where output and target count as two, whether it takes the target or not."""

    def reads(self, batch: Batch) -> Any:
        """What it gets of a batch: the targets, or all of it."""
        return batch if self.takes_batch else targets_of(batch)

    def __call__(self, output: Any, batch: Batch, *more: Any) -> Any:
        """The function's result."""
        positions, keywords = self._arguments(output, batch, *more)
        return self._function(*positions, **keywords)

    def accepts(self, more: int = 0) -> bool:
        """Whether it can be called with so many arguments beside output and batch."""
        signature = signature_of(self._function)
        positions, keywords = self._arguments(*[None] * (2 + more))
        return signature is None or binds(signature, *positions, **keywords)

    def _arguments(self, output: Any, batch: Batch, *more: Any) -> tuple[list[Any], dict[str, Any]]:
        positions = [output, *([targets_of(batch)] if self._takes_target else []), *more]
        if not self.takes_batch:
            return positions, {}
        if self._place is None or self._place > len(positions):
            return positions, {BATCH: batch}
        return [*positions[: self._place], batch, *positions[self._place :]], {}


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def signature_of(function: Callable[..., object]) -> inspect.Signature | None:
    """None for the few built-in functions that do not tell."""
    # A module's __call__ hides the parameters of its forward behind *args.
    visible = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(visible)
    except (TypeError, ValueError):
        return None


def binds(signature: inspect.Signature, *positions: object, **keywords: object) -> bool:
    """Whether a function with this signature can be called so."""
    try:
        signature.bind(*positions, **keywords)
    except TypeError:
        return False
    return True
