"""The parameters of a sweep and their values, by the names that W&B uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fds_dist.common.faults import Fault
from fds_dist.common.kinds import show, wrong_kind
from fds_dist.common.registry import nearest
from fds_dist.config.yaml_text import parse_yaml

FORMS = "{value: …}, {values: […]} or {min: …, max: …}"

KEYS = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
}
"""Distribution → its keys. W&B has more distributions; a config accepts the values of these."""


@dataclass(frozen=True)
class Parameter:
    """A dotted key of the config, and the values that the jobs of a sweep give it."""

    name: str
    choices: tuple[Any, ...]
    """All values; for a range, the lowest and the highest."""
    at: Callable[[float], Any]
    """A function from a uniform random number in [0, 1) to a value."""
    is_range: bool


def read_parameter(name: str, spec: Any, faults: list[Fault]) -> Parameter | None:
    """One parameter of the file; None, with faults added to `faults`, if it is wrong."""
    key = f"parameters.{name}"
    if not isinstance(spec, dict):
        faults.append(Fault(key, wrong_kind(spec), FORMS))
        return None
    if "parameters" in spec:
        faults.append(Fault(key, "is nested, and would replace the whole section", f"dotted names, {name}.KEY"))
        return None
    kind, kind_faults = _distribution(key, spec)
    faults += kind_faults
    if kind is None:
        return None
    faults += _unknown_keys(key, kind, spec)
    missing = [Fault(f"{key}.{each}", "is missing", "a value") for each in KEYS[kind] if each not in spec]
    faults += missing
    if missing:
        return None
    read = _choice if kind in ("constant", "categorical") else _range
    return read(name, kind, spec, faults)


def _distribution(key: str, spec: Mapping[str, Any]) -> tuple[str | None, list[Fault]]:
    """The distribution that the file names, or that follows from the keys by W&B's rules."""
    kind = spec.get("distribution")
    if kind is not None:
        if isinstance(kind, str) and kind in KEYS:
            return kind, []
        by_values = f"{kind}_values"  # the bounds of log_uniform are exponents
        nearest_name = by_values if by_values in KEYS else nearest(str(kind), KEYS)
        return None, [
            Fault(f"{key}.distribution", f"{show(kind)} is not supported", f"one of {', '.join(KEYS)}", nearest_name)
        ]
    for one in ("value", "values"):
        if one in spec:
            return "constant" if one == "value" else "categorical", []
    if "min" not in spec and "max" not in spec:
        unknown = [Fault(f"{key}.{name}", "unknown key", FORMS, nearest(name, _ALL_KEYS)) for name in spec]
        return None, unknown or [Fault(key, "has no values", FORMS)]
    ends = [spec[end] for end in ("min", "max") if end in spec]
    if len({isinstance(end, int) for end in ends}) == 2:
        expected = "two whole numbers, two decimal ones, or a distribution"
        return None, [Fault(key, f"min {show(ends[0])} and max {show(ends[1])} are of two kinds", expected)]
    return "int_uniform" if isinstance(ends[0], int) else "uniform", []


def _unknown_keys(key: str, kind: str, spec: Mapping[str, Any]) -> Iterator[Fault]:
    for name in spec:
        if name not in (*KEYS[kind], "distribution"):
            problem = "does not belong here" if name in _ALL_KEYS else "unknown key"
            yield Fault(f"{key}.{name}", problem, f"{' and '.join(KEYS[kind])} alone, for {kind}")


def _choice(name: str, kind: str, spec: Mapping[str, Any], faults: list[Fault]) -> Parameter | None:
    """A constant, or a list of values to choose from."""
    key, values = f"parameters.{name}.values", spec.get("values")
    if kind == "categorical" and (not isinstance(values, list) or not values):
        faults.append(Fault(key, "[] is empty" if values == [] else wrong_kind(values), "a list of values"))
        return None
    by_place = {f"parameters.{name}.value": spec["value"]} if kind == "constant" else {}
    by_place |= {f"{key}[{index}]": value for index, value in enumerate(values or ())}
    lost = {place: fault for place, value in by_place.items() if (fault := _lost(place, value))}
    faults += lost.values()
    choices = tuple(value for place, value in by_place.items() if place not in lost)
    return (
        Parameter(name, choices, lambda fraction: choices[int(fraction * len(choices))], is_range=False)
        if choices
        else None
    )


def _range(name: str, kind: str, spec: Mapping[str, Any], faults: list[Fault]) -> Parameter | None:
    key, low, high = f"parameters.{name}", spec["min"], spec["max"]
    bound_faults = []
    for end in ("min", "max"):
        whole, value = kind == "int_uniform", spec[end]
        if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
            bound_faults.append(Fault(f"{key}.{end}", wrong_kind(value), "a whole number" if whole else "a number"))
        elif not math.isfinite(value):
            bound_faults.append(Fault(f"{key}.{end}", f"{show(value)} is not finite", "a number"))
    if not bound_faults and low >= high:
        bound_faults.append(Fault(f"{key}.min", f"{show(low)} is out of range", f"a number below max, {show(high)}"))
    if not bound_faults and kind == "log_uniform_values" and low <= 0:
        bound_faults.append(Fault(f"{key}.min", f"{show(low)} has no logarithm", "a number above 0"))
    faults += bound_faults
    if bound_faults:
        return None
    draws: dict[str, Callable[[float], Any]] = {
        "int_uniform": lambda fraction: low + int(fraction * (high - low + 1)),
        "uniform": lambda fraction: low + fraction * (high - low),
        "log_uniform_values": lambda fraction: low * (high / low) ** fraction,
    }
    return Parameter(name, (low, high), draws[kind], is_range=True)


def _lost(key: str, value: Any) -> Fault | None:
    """A fault if W&B's `key=value` changes the value: W&B writes null as None, for example.

    Text arrives unchanged: "null", in quotes, sets null.
    """
    arrived, faults = parse_yaml(str(value))
    if isinstance(value, str) or (not faults and arrived == value and type(arrived) is type(value)):
        return None
    expected = '"null", in quotes' if value is None else "text in quotes, as in key=TEXT"
    return Fault(key, f"{show(value)} would be changed: W&B writes it as {value}", expected)


_ALL_KEYS = ("distribution", *dict.fromkeys(name for keys in KEYS.values() for name in keys))
