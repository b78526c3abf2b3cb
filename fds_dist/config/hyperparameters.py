"""The `hyperparameters:` section: what a user says about one hyperparameter, and what may contradict in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import TypeAdapter

from fds_dist.common.kinds import Bound, Count, Name, Number, Positive, fault, read_by, show, wrong_kind
from fds_dist.config.sections import Contradiction, Section

if TYPE_CHECKING:
    pass


LEFT_OUT: Any = None
"""Stands for a key that is left out."""


class GroupOverride(Section):
    """The keys in which one parameter group's copy of a hyperparameter differs from the rest."""

    MEANINGFUL_ABSENCE = frozenset({"init", "buckets", "step", "min", "max", "scale"})

    init: Number = LEFT_OUT
    """The value of every bucket before the first outer step."""

    buckets: Count = LEFT_OUT
    """How many values the horizon is divided into."""

    step: Positive = LEFT_OUT
    """Size of the first outer step."""

    min: Bound = None
    """Lower bound; null means none."""

    max: Bound = None
    """Upper bound; null means none."""

    scale: Literal["linear", "log"] = LEFT_OUT
    """The coordinate in which the outer optimizer moves."""


_NUMBER = TypeAdapter[float](Number)
_OVERRIDES = TypeAdapter(dict[Name, GroupOverride])


def _per_group(value: Any) -> bool | dict[str, GroupOverride]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise fault(wrong_kind(value), "true, false, or a mapping from group to the keys that differ there")
    return _OVERRIDES.validate_python(value)


class HyperparameterConfig(Section):
    """A learned hyperparameter."""

    MEANINGFUL_ABSENCE = frozenset({"min", "max"})

    init: Number
    """The value of every bucket before the first outer step."""

    buckets: Count = 1
    """How many values the horizon is divided into."""

    step: Positive
    """Size of the first outer step, in units of the value (of its logarithm where `scale` is log)."""

    min: Bound = None
    """Lower bound. Left out (not in `model_fields_set`): the natural domain's; null: none."""

    max: Bound = None
    """Upper bound. Left out (not in `model_fields_set`): the natural domain's; null: none."""

    scale: Literal["linear", "log"] = "linear"
    """The outer optimizer moves the value, or its logarithm (log(1 - x) for momentum, beta1 and beta2)."""

    per_group: Annotated[bool | dict[str, GroupOverride], read_by(_per_group)] = False
    """One copy for each of `inner.groups`: true, or a mapping from group to the keys that differ there."""

    def for_group(self, group: str) -> HyperparameterConfig:
        """This hyperparameter as it is learned for one parameter group."""
        settings = self.resolved()
        overrides = settings.pop("per_group")
        own = overrides.get(group, {}) if isinstance(overrides, dict) else {}
        return HyperparameterConfig.model_validate({**settings, **own})


def _hyperparameter(value: Any) -> float | HyperparameterConfig:
    if isinstance(value, (dict, HyperparameterConfig)):
        return HyperparameterConfig.model_validate(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _NUMBER.validate_python(value)
    raise fault(wrong_kind(value), "a number (fixed), or a mapping with init and step (learned)")


Hyperparameters = dict[Name, Annotated[float | HyperparameterConfig, read_by(_hyperparameter)]]


LOG_OF_COMPLEMENT = ("momentum", "beta1", "beta2")
"""Hyperparameters in [0, 1): on the log scale these move by log(1 - x) instead of log(x)."""


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
