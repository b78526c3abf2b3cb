"""A section of the config, and contradictions between its values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from fds_dist.common.kinds import fault, show, wrong_kind


class Section(BaseModel):
    """A section of the config: unknown keys, other types and changes after reading are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    MEANINGFUL_ABSENCE: ClassVar[frozenset[str]] = frozenset()
    """The keys whose absence means something that no value means."""

    DEPENDENT: ClassVar[frozenset[str]] = frozenset()
    """The keys whose default depends on other keys; their docstrings say how."""

    def resolved(self) -> dict[str, Any]:
        """The section as plain values with every default explicit, in the order of the fields.

        A key in `MEANINGFUL_ABSENCE` that was left out stays out.
        """
        absent = self.MEANINGFUL_ABSENCE - self.model_fields_set
        return {name: _plain(value) for name, value in self if name not in absent}

    def __eq__(self, other: object) -> bool:
        """Whether the settings are equal; a bound that is left out differs from `null`."""
        return type(self) is type(other) and isinstance(other, Section) and self.resolved() == other.resolved()


def _plain(value: object) -> object:
    if isinstance(value, Section):
        return value.resolved()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class Contradiction(NamedTuple):
    """Values that are valid alone but not together."""

    path: tuple[str, ...]
    problem: str
    expected: str
    related: tuple[str, ...] = ()


def option_contradictions(path: tuple[str, ...], value: object) -> Iterator[Contradiction]:
    """The parts of an option that YAML cannot hold, or cannot read back unchanged."""
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
    """Raises pydantic's `ValidationError` with all contradictions, if there are any."""
    details = [
        InitErrorDetails(type=fault(each.problem, each.expected, each.related), loc=each.path, input=None)
        for each in contradictions
    ]
    if details:
        raise ValidationError.from_exception_data("config", details)


class FunctionConfig(Section):
    """A function by its name, with its keyword arguments as further keys."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The other keys: the function's keyword arguments."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _options_are_plain(self) -> FunctionConfig:
        refuse(option_contradictions((), {**self.options, **self.resolved()}))
        return self
