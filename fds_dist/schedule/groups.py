"""Parameter groups: which parameters share a copy of a hyperparameter. Needs no torch.

A group is a name and a regular expression, which is searched in the parameters' qualified names; the first match wins.
The copy of a hyperparameter for a group has both names: `lr.norm_and_bias` is the learning rate of `norm_and_bias`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import few

SHOWN = 5
"""The largest number of parameters that a message lists; it counts the others."""


def name_in(base: str, group: str) -> str:
    """The name of the copy of `base` in `group`: `lr.norm_and_bias`."""
    return f"{base}.{group}"


def base_of(name: str) -> str:
    """The hyperparameter without its group: `lr.norm_and_bias` → `lr`."""
    return name.partition(".")[0]


def group_of(name: str) -> str:
    """The parameter group of a copy, or "" for all parameters: `lr.norm_and_bias` → `norm_and_bias`."""
    return name.partition(".")[2]


def assigned(patterns: Mapping[str, str], parameters: Collection[str], key: str = "inner.groups") -> dict[str, str]:
    """Parameter name → group name, by the groups' `patterns` in their order.

    Args:
        patterns: group name → regular expression.
        parameters: qualified names.
        key: the config's key of `patterns`, for messages.

    Raises:
        UserError: with every fault: parameters that no pattern matches, and groups without a parameter.
    """
    matches = {
        parameter: [group for group, pattern in patterns.items() if re.search(pattern, parameter)]
        for parameter in parameters
    }
    group_by_parameter = {parameter: groups[0] for parameter, groups in matches.items() if groups}
    faults = []
    if unmatched := [parameter for parameter, groups in matches.items() if not groups]:
        problem = f"no pattern matches {few(unmatched, SHOWN)}"
        faults.append(Fault(key, problem, "a group for every parameter, such as a last one with '.*'"))
    for group in patterns.keys() - set(group_by_parameter.values()):
        if any(group in groups for groups in matches.values()):
            problem, expected = "earlier groups match all of its parameters", "another order, or another pattern"
        else:
            names = ", ".join([*parameters][:SHOWN])
            problem, expected = f"{patterns[group]!r} matches no parameter", f"a pattern found in names like {names}"
        faults.append(Fault(f"{key}.{group}", problem, expected))
    if faults:
        raise UserError(sorted(faults, key=lambda fault: fault.key))
    return group_by_parameter
