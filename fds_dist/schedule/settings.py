"""Hyperparameters in the parameter groups of a `torch.optim` optimizer: reading, comparing and writing them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fds_dist.schedule.groups import base_of, group_of

ParameterGroup = dict[str, Any]

_BETAS = {"beta1": 0, "beta2": 1}
"""Hyperparameters that share the key "betas" → their positions in its value."""


def key_of(name: str) -> str:
    """The key of the hyperparameter in a parameter group: `beta1` → `betas`, `lr.norm` → `lr`."""
    base = base_of(name)
    return "betas" if base in _BETAS else base


def entry(name: str, value: Any) -> Any:
    """The hyperparameter's part of `value`, a group's value under its key: one of the two betas, or all of `value`."""
    position = _BETAS.get(base_of(name))
    return value if position is None else value[position]


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
        return entry(self.name, self.group[key_of(self.name)])

    def holds(self, value: float) -> bool:
        """Whether the group has this value; a tensor is compared after rounding to its dtype."""
        current = self.value
        if isinstance(current, Tensor):
            return bool((current == torch.full_like(current, value)).all())
        return current == value

    def write(self, value: float) -> None:
        """Sets the value. A tensor is filled in place, because a compiled or captured step reads that same tensor."""
        current, key = self.value, key_of(self.name)
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.fill_(value)
        elif key == "betas":
            betas = list(self.group["betas"])
            betas[_BETAS[base_of(self.name)]] = value
            self.group["betas"] = tuple(betas)
        else:
            self.group[key] = value


def settings(groups: Iterable[ParameterGroup], names: Iterable[str]) -> Iterator[Setting]:
    """Every place of the hyperparameters `names` in `groups`; `lr.norm` has one in the group named "norm"."""
    names = tuple(names)
    for index, group in enumerate(groups):
        for name in names:
            if group_of(name) in ("", group.get("name")) and key_of(name) in group:
                yield Setting(index, group, name)


def write_all(groups: Iterable[ParameterGroup], values: Mapping[str, float]) -> None:
    """Sets each of `values` in all of its places in `groups`."""
    for setting in settings(groups, values):
        setting.write(values[setting.name])
