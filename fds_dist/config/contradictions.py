"""Mistakes that no single value shows: values right by themselves and wrong together, options that are not plain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from fds_dist.config.hyperparameters import HyperparameterConfig
from fds_dist.config.kinds import fault, show, wrong_kind

if TYPE_CHECKING:
    from fds_dist.config.schema import Config

LOG_OF_COMPLEMENT = ("momentum", "beta1", "beta2")
"""Hyperparameters in [0, 1): on the log scale these move by log(1 - x) instead of log(x)."""


class Contradiction(NamedTuple):
    """Values that are right by themselves and wrong together."""

    path: tuple[str, ...]
    problem: str
    expected: str
    related: tuple[str, ...] = ()


def hyperparameter_contradictions(
    name: str, hyperparameter: HyperparameterConfig, groups: tuple[str, ...]
) -> Iterator[Contradiction]:
    """What is wrong within one learned hyperparameter, with paths below its own key; `groups`: `inner.groups`."""
    own = list(_range_contradictions(name, hyperparameter))
    yield from own
    overrides = hyperparameter.per_group
    if overrides and not groups:
        yield Contradiction(("per_group",), "there are no groups", "groups in inner.groups", ("inner.groups",))
    elif isinstance(overrides, dict):
        for group, override in overrides.items():
            if group not in groups:
                names = ", ".join(groups)
                yield Contradiction(("per_group", group), "unknown group", f"one of {names}", ("inner.groups",))
            elif not own:
                for found in _range_contradictions(name, hyperparameter.for_group(group)):
                    below = found.path if found.path[0] in override.model_fields_set else ()
                    yield found._replace(path=("per_group", group, *below))


def _range_contradictions(name: str, hyperparameter: HyperparameterConfig) -> Iterator[Contradiction]:
    init, low, high = hyperparameter.init, hyperparameter.min, hyperparameter.max
    if low is not None and high is not None and low > high:
        yield Contradiction(("min",), f"{show(low)} is above max", f"a number of at most {show(high)} (max)")
    elif low is not None and init < low:
        yield Contradiction(("init",), f"{show(init)} is out of range", f"a number of at least {show(low)} (min)")
    elif high is not None and init > high:
        yield Contradiction(("init",), f"{show(init)} is out of range", f"a number of at most {show(high)} (max)")
    if hyperparameter.scale == "log":
        if name in LOG_OF_COMPLEMENT and init >= 1:
            yield Contradiction(("init",), f"{show(init)} has no log(1 - x)", "a number below 1, or scale: linear")
        if name not in LOG_OF_COMPLEMENT and init <= 0:
            yield Contradiction(("init",), f"{show(init)} has no logarithm", "a number above 0, or scale: linear")


def config_contradictions(config: Config) -> Iterator[Contradiction]:
    """Values of one config that are right by themselves and wrong together."""
    epochs, steps = config.inner.epochs, config.outer.steps
    if isinstance(epochs, list) and len(epochs) != steps:
        problem = f"{show(epochs)} has {len(epochs)} entries for {steps} outer steps"
        expected = f"one number, or as many as outer.steps ({steps})"
        yield Contradiction(("inner", "epochs"), problem, expected, ("outer.steps",))
    if config.inner.nesterov and config.inner.optimizer != "sgd":
        problem = f"{config.inner.optimizer} has no such switch"
        yield Contradiction(("inner", "nesterov"), problem, "false, or inner.optimizer: sgd", ("inner.optimizer",))
    groups = tuple(config.inner.groups or ())
    for name, value in config.hyperparameters.items():
        if isinstance(value, HyperparameterConfig):
            for found in hyperparameter_contradictions(name, value, groups):
                yield found._replace(path=("hyperparameters", name, *found.path))


def option_contradictions(path: tuple[str, ...], value: object) -> Iterator[Contradiction]:
    """The parts of an option that YAML could not hold, or not read back as they are."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from option_contradictions((*path, key), item)
    elif isinstance(value, list):
        for item in value:
            yield from option_contradictions(path, item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Contradiction(path, f"{show(value)} is not finite", "a finite number")
    elif not isinstance(value, (str, int, float, type(None))):
        yield Contradiction(path, wrong_kind(value), "text, a number, true, false, null, a list or a mapping")


def refuse(contradictions: Iterable[Contradiction]) -> None:
    """Raise pydantic's `ValidationError` with all of them, if there are any."""
    details = [
        InitErrorDetails(type=fault(found.problem, found.expected, found.related), loc=found.path, input=None)
        for found in contradictions
    ]
    if details:
        raise ValidationError.from_exception_data("config", details)
