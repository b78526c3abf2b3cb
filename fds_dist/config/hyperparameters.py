"""The `hyperparameters:` section: what a user says about one hyperparameter."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from fds_dist.config.kinds import Bound, Count, Name, Number, Positive, fault, read_by, wrong_kind

LEFT_OUT: Any = None
"""Stands for a key that is left out."""


class Section(BaseModel):
    """A section of the config: unknown keys, other types and changes after reading are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    MEANINGFUL_ABSENCE: ClassVar[frozenset[str]] = frozenset()
    """The keys that mean something else when they are left out than with any value."""

    def resolved(self) -> dict[str, Any]:
        """The section as plain values with every default explicit, in the order of the fields.

        Keys whose absence has a meaning of its own stay absent.
        """
        absent = self.MEANINGFUL_ABSENCE - self.model_fields_set
        return {name: _plain(value) for name, value in self if name not in absent}

    def __eq__(self, other: object) -> bool:
        """Equal settings; a bound left out differs from `null`."""
        return type(self) is type(other) and isinstance(other, Section) and self.resolved() == other.resolved()


def _plain(value: object) -> object:
    if isinstance(value, Section):
        return value.resolved()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


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
