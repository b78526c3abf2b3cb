"""What a schedule's file may contain. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fds_dist.common.faults import Fault
from fds_dist.schedule.shapes import SHAPES

FORMAT = "fds-dist schedule"
VERSION = 1
"""Of a schedule whose every value is constant over its steps."""
WITH_SHAPES = 2
"""Of a schedule with other shapes, which versions of this program that do not know shapes would misread."""


def content_faults(content: object, source: str) -> list[Fault]:
    """The reasons why `content` is not a schedule."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return [Fault(source, "is not a schedule", f'an object with "format": "{FORMAT}"')]
    if content.get("version") not in (VERSION, WITH_SHAPES):
        problem = f"{content.get('version')!r} is unknown"
        return [Fault(f"{source}: version", problem, f"at most {WITH_SHAPES}; a newer fds-dist may read it")]
    faults = []
    horizon = content.get("horizon")
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
        faults.append(Fault(f"{source}: horizon", f"{horizon!r} is not valid", "a whole number of at least 1"))
    for section, absent, valid, expected in (
        ("hyperparameters", None, _is_row, "a list of finite numbers per name, or of lists of one length"),
        ("fixed", {}, _is_number, "a finite number per name"),
        ("shape", {}, _is_shape, f"one of {', '.join(SHAPES)} per name; a newer fds-dist may know others"),
        ("optimizer", {}, lambda value: True, "the optimizer of the search"),
    ):
        mapping = content.get(section, absent)
        if not isinstance(mapping, dict):
            faults.append(Fault(f"{source}: {section}", f"{mapping!r} is not valid", f"an object: {expected}"))
            continue
        faults += [
            Fault(f"{source}: {section}.{name}", f"{value!r} is not valid", expected)
            for name, value in mapping.items()
            if not valid(value)
        ]
    if isinstance(optimizer := content.get("optimizer"), dict):
        faults += [
            Fault(f"{source}: optimizer.{key}", f"{value!r} is not valid", expected)
            for key, (valid, expected) in OF_THE_OPTIMIZER.items()
            if (value := optimizer.get(key)) is not None and not valid(value)
        ]
    return faults


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_row(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if all(map(_is_number, value)):
        return True
    vectors = all(isinstance(each, list) and all(map(_is_number, each)) for each in value)
    return vectors and len(set(map(len, value))) == 1 and len(value[0]) > 0


def _is_shape(value: object) -> bool:
    return isinstance(value, str) and value in SHAPES


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_patterns(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


OF_THE_OPTIMIZER: dict[str, tuple[Callable[[object], bool], str]] = {
    "name": (_is_text, "the optimizer's name"),
    "groups": (_are_patterns, "a pattern per parameter group"),
    "clip_gradient": (_is_positive, "a number above 0, or null"),
    "clip_norm": (_is_positive, "a number above 0, or null"),
    "ema": (_is_number, "a number, or null"),
    "accumulate": (lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1"),
    "precision": (_is_text, "the precision of autocast, or null"),
    "options": (lambda value: isinstance(value, dict), "an object: the arguments of the optimizer"),
    "hyperparameters": (_are_texts, "a list of names"),
}
"""Key of `optimizer` → what its value must be; it may have others, as an optimizer's switches."""
