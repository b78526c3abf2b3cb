"""Defaults that depend on other keys: what was measured as the steadiest, or with `outer.optimizer: sign` the paper's.

A value that is given always wins. The resolved config has the values that were taken, so a run's own config gives the
same run under any later defaults. Configs that an earlier version resolved lack the keys that came later; they mean
what their run had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fds_dist.common import limits
from fds_dist.common.domain import NON_NEGATIVE, UNIT_INTERVAL, has_logarithm, natural_domain
from fds_dist.common.optimizers import BUILT_IN, usual_start

RULE = "adam"
"""`outer.optimizer` where it is left out."""

STEPS = 3
"""`outer.steps` where it is left out."""

PAPER = {"retreat": False, "average": 1, "judge_seeds": 0}
"""Of `outer`, with the paper's rule, and in configs that were resolved before these keys came."""

AVERAGE = 4
"""Values in the mean: it evened the wandering out as well as any, and costs nothing."""

STEADIEST = {"retreat": True, "average": AVERAGE, "judge_seeds": 3}

LOG_STEP = 0.7
"""The first move doubles a value or halves it: from where people begin, a few outer steps then reach what is best."""

LINEAR_STEPS = {"weight_decay": 3e-4}
"""By name the step on a linear scale of a hyperparameter that begins at 0 and has no range (the paper's)."""

LINEAR_STEP = 0.1

RESOLVED_OUTER = frozenset({"optimizer", "step_decay", "momentum", "beta1", "beta2", "nonfinite_patience"})
"""Keys of `outer` that every resolved config states, whatever version wrote it, and no person all at once."""

RESOLVED_ENTRY = frozenset({"init", "buckets", "step", "scale", "per_group"})
"""Likewise of a learned hyperparameter."""


def outer_defaults(outer: Mapping[str, Any]) -> dict[str, Any]:
    """The section `outer` with the defaults that depend on its rule and its number of steps."""
    rule, steps = outer.get("optimizer", RULE), outer.get("steps", STEPS)
    defaults: dict[str, Any] = PAPER if rule == "sign" else STEADIEST
    if isinstance(steps, int):
        defaults = {**defaults, "average": max(1, min(defaults["average"], steps))}
    if outer.keys() >= RESOLVED_OUTER:
        defaults = {**defaults, "average": 1, "judge_seeds": 0}
    return {"optimizer": rule, **defaults, **outer}


def config_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of its learned hyperparameters, which depend on the sections `outer` and `inner`."""
    entries = config.get("hyperparameters")
    if not isinstance(entries, Mapping):
        return dict(config)
    rule = _value(config.get("outer"), "optimizer", RULE)
    optimizer = _value(config.get("inner"), "optimizer", "sgd")
    optimizer = _value(optimizer, "name", "") if not isinstance(optimizer, str) else optimizer
    filled = {
        name: hyperparameter_defaults(name, entry, rule, optimizer) if isinstance(entry, dict) else entry
        for name, entry in entries.items()
    }
    return {**config, "hyperparameters": filled}


def _value(section: object, key: str, absent: object) -> object:
    """The value of a key of a section, a mapping or an object; `absent` where it has none."""
    return section.get(key, absent) if isinstance(section, Mapping) else getattr(section, key, absent)


def hyperparameter_defaults(name: str, entry: Mapping[str, Any], rule: object, optimizer: object) -> dict[str, Any]:
    """The settings of one learned hyperparameter, and of its copies for parameter groups where these differ, with the
    defaults of those that are left out.

    Args:
        name: without a parameter group.
        rule: `outer.optimizer`.
        optimizer: the name of the inner optimizer.
    """
    filled, overrides = _filled(name, entry, rule, str(optimizer)), entry.get("per_group")
    if not isinstance(overrides, dict):
        return filled
    groups = {
        group: {**_differing(_filled(name, {**entry, **override}, rule, str(optimizer)), filled), **override}
        if isinstance(override, dict)
        else override
        for group, override in overrides.items()
    }
    return {**filled, "per_group": groups}


def _differing(copy: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group's copy that depend on other keys, where they are not those of the hyperparameter."""
    return {key: copy[key] for key in ("init", "scale", "shape", "step") if copy.get(key) != filled.get(key)}


def _filled(name: str, entry: Mapping[str, Any], rule: object, optimizer: str) -> dict[str, Any]:
    """The settings with the defaults of those that are left out.

    Without a start that is known for it, `init` stays out. Values of a wrong kind stay as they are, to be told later.
    """
    filled, start = dict(entry), usual_start(optimizer, name)
    if "init" not in filled and start is not None:
        low, high = _bounds(name, entry)
        filled["init"] = min(max(start, low), high)
    numbers, buckets = _numbers(filled.get("init")), entry.get("buckets")
    takes_log = _has_log_scale(name, optimizer) and all(has_logarithm(name, number) for number in numbers)
    is_shaped = isinstance(buckets, int) and buckets > 1 and not entry.keys() >= RESOLVED_ENTRY
    scale, shape = "log" if takes_log else "linear", "linear" if is_shaped else "constant"
    if rule == "sign":
        scale, shape = "linear", "constant"
    filled = {"scale": scale, "shape": shape, **filled}
    if "step" not in filled:
        filled["step"] = LOG_STEP if filled["scale"] == "log" else linear_step(name, numbers, filled)
    return filled


def linear_step(name: str, numbers: list[float], entry: Mapping[str, Any]) -> float:
    """The step on a linear scale: half the largest start or a tenth of the range, whichever is less."""
    half = max(map(abs, numbers), default=0.0) / 2
    low, high = _bounds(name, entry)
    steps = [step for step in (half, (high - low) / 10) if 0 < step < math.inf]
    return float(f"{min(steps, default=LINEAR_STEPS.get(name, LINEAR_STEP)):.2g}")


def _bounds(name: str, entry: Mapping[str, Any]) -> tuple[float, float]:
    """(min, max): those of the entry, or of the natural domain."""
    low, high = natural_domain(name)
    low, high = (_numbers(entry.get(side, bound)) for side, bound in (("min", low), ("max", high)))
    return (low or [-math.inf])[0], (high or [math.inf])[0]


def _has_log_scale(name: str, optimizer: str) -> bool:
    """Whether the hyperparameter's domain has a logarithm of the value, or of its distance to 1."""
    domains = BUILT_IN[optimizer].domains if optimizer in BUILT_IN else {}
    return name in UNIT_INTERVAL or NON_NEGATIVE in (natural_domain(name), domains.get(name))


def _numbers(value: object) -> list[float]:
    """The numbers of an `init` that has some; of a curve or a file none are known yet."""
    values = value if isinstance(value, list) else [value]
    numbers = [each for each in values if isinstance(each, (int, float)) and not isinstance(each, bool)]
    return [float(each) for each in numbers if abs(each) <= limits.NUMBER]  # others are told by the schema
