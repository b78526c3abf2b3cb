"""The parameters of a sweep: which values each of them takes, in the words of W&B."""

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
"""Distribution to the keys that it needs. W&B has more; these arrive as values that a config takes."""


@dataclass(frozen=True)
class Parameter:
    """A dotted key of the config, and what the jobs of a sweep set it to."""

    name: str
    choices: tuple[Any, ...]
    """All values, or the lowest and the highest of a range."""
    at: Callable[[float], Any]
    """From a number of [0, 1), drawn evenly, to a value."""
    is_range: bool


def read_parameter(name: str, spec: Any, faults: list[Fault]) -> Parameter | None:
    """What the file says about one parameter, as far as it is right; the rest goes to `faults`."""
    key = f"parameters.{name}"
    if not isinstance(spec, dict):
        faults.append(Fault(key, wrong_kind(spec), FORMS))
        return None
    if "parameters" in spec:
        faults.append(Fault(key, "is nested, which would replace the whole section", f"dotted names, {name}.KEY"))
        return None
    kind, found = _distribution(key, spec)
    faults += found
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
    """The distribution that is named, or that follows from the keys as W&B has it."""
    kind = spec.get("distribution")
    if kind is not None:
        if isinstance(kind, str) and kind in KEYS:
            return kind, []
        by_values = f"{kind}_values"  # log_uniform has exponents for bounds
        near = by_values if by_values in KEYS else nearest(str(kind), KEYS)
        return None, [Fault(f"{key}.distribution", f"{show(kind)} is not supported", f"one of {', '.join(KEYS)}", near)]
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
    """The values that arrive as they are."""
    key, values = f"parameters.{name}.values", spec.get("values")
    if kind == "categorical" and (not isinstance(values, list) or not values):
        faults.append(Fault(key, "[] is empty" if values == [] else wrong_kind(values), "a list of values"))
        return None
    given = {f"parameters.{name}.value": spec["value"]} if kind == "constant" else {}
    given |= {f"{key}[{index}]": value for index, value in enumerate(values or ())}
    lost = {place: fault for place, value in given.items() if (fault := _lost(place, value))}
    faults += lost.values()
    kept = tuple(value for place, value in given.items() if place not in lost)
    return Parameter(name, kept, lambda fraction: kept[int(fraction * len(kept))], is_range=False) if kept else None


def _range(name: str, kind: str, spec: Mapping[str, Any], faults: list[Fault]) -> Parameter | None:
    key, low, high = f"parameters.{name}", spec["min"], spec["max"]
    found = []
    for end in ("min", "max"):
        whole, value = kind == "int_uniform", spec[end]
        if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
            found.append(Fault(f"{key}.{end}", wrong_kind(value), "a whole number" if whole else "a number"))
        elif not math.isfinite(value):
            found.append(Fault(f"{key}.{end}", f"{show(value)} is not finite", "a number"))
    if not found and low >= high:
        found.append(Fault(f"{key}.min", f"{show(low)} is out of range", f"a number below max, {show(high)}"))
    if not found and kind == "log_uniform_values" and low <= 0:
        found.append(Fault(f"{key}.min", f"{show(low)} has no logarithm", "a number above 0"))
    faults += found
    if found:
        return None
    draws: dict[str, Callable[[float], Any]] = {
        "int_uniform": lambda fraction: low + int(fraction * (high - low + 1)),
        "uniform": lambda fraction: low + fraction * (high - low),
        "log_uniform_values": lambda fraction: low * (high / low) ** fraction,
    }
    return Parameter(name, (low, high), draws[kind], is_range=True)


def _lost(key: str, value: Any) -> Fault | None:
    """A fault where W&B's `key=value` does not say the same again: it writes null as None, for one.

    Text is what stands there: "null", in quotes, is the way to say null.
    """
    arrived, faults = parse_yaml(str(value))
    if isinstance(value, str) or (not faults and arrived == value and type(arrived) is type(value)):
        return None
    expected = '"null", in quotes' if value is None else "text in quotes, as it would stand behind key="
    return Fault(key, f"{show(value)} does not arrive: W&B writes it as {value}", expected)


_ALL_KEYS = ("distribution", *dict.fromkeys(name for keys in KEYS.values() for name in keys))
