"""Hyperparameters in the parameter groups of a `torch.optim` optimizer: reading, comparing and writing them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fds_dist.schedule.groups import base_of, group_of

ParameterGroup = dict[str, Any]

_NUMBERED = re.compile(r"(beta)([1-9])")
"""A hyperparameter of which `torch.optim` has several in one tuple: `beta2` is the second of `betas`."""


class Place(NamedTuple):
    """Where a hyperparameter stands in a parameter group."""

    key: str
    position: int | None = None
    """In the tuple under the key; None: the value itself."""

    def is_in(self, group: ParameterGroup) -> bool:
        """Whether the group has it."""
        return self.key in group and (self.position is None or self.position < len(group[self.key]))

    def entry(self, value: Any) -> Any:
        """The hyperparameter's part of `value`, which is a group's value under the key."""
        return value if self.position is None else value[self.position]


def place_of(name: str, group: Collection[str] = ()) -> Place:
    """The place of a hyperparameter: `beta2` → the second of `betas`, `lr.norm` → `lr`.

    It is the hyperparameter's own name where `group` has that as a key.
    """
    base = base_of(name)
    numbered = None if base in group else _NUMBERED.fullmatch(base)
    return Place(base) if numbered is None else Place(f"{numbered[1]}s", int(numbered[2]) - 1)


class Setting(NamedTuple):
    """One hyperparameter in one parameter group of an optimizer."""

    group_index: int
    """The position of `group` in `optimizer.param_groups`."""
    group: ParameterGroup
    name: str

    def __str__(self) -> str:
        return f"{self.name} of param_groups[{self.group_index}]"

    @property
    def value(self) -> Any:
        """The number or the tensor that the group holds."""
        place = place_of(self.name, self.group)
        return place.entry(self.group[place.key])

    def holds(self, value: float) -> bool:
        """Whether the group has this value; a tensor is compared after rounding to its dtype."""
        current = self.value
        if isinstance(current, Tensor):
            return bool((current == torch.full_like(current, value)).all())
        return current == value

    def write(self, value: float) -> None:
        """Sets the value. A tensor is filled in place, because a compiled or captured step reads that same tensor."""
        current, (key, position) = self.value, place_of(self.name, self.group)
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.fill_(value)
        elif position is None:
            self.group[key] = value
        else:
            entries = self.group[key]
            self.group[key] = (*entries[:position], value, *entries[position + 1 :])


def settings(groups: Iterable[ParameterGroup], names: Iterable[str]) -> Iterator[Setting]:
    """Every place of the hyperparameters `names` in `groups`; `lr.norm` has one in the group named "norm"."""
    names = tuple(names)
    for index, group in enumerate(groups):
        for name in names:
            if group_of(name) in ("", group.get("name")) and place_of(name, group).is_in(group):
                yield Setting(index, group, name)


def write_all(groups: Iterable[ParameterGroup], values: Mapping[str, float]) -> None:
    """Sets each of `values` in all of its places in `groups`."""
    for setting in settings(groups, values):
        setting.write(values[setting.name])
