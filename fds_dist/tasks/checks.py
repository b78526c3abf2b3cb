"""Options of tasks, checked: their values may come straight from a config."""

from __future__ import annotations

from collections.abc import Iterable

from fds_dist.faults import Fault

COUNT = "a whole number of at least 1"
SWITCH = "true or false"

Check = tuple[str, object, bool, str]
"""(option, its value, whether it is right, what would be)"""


def option_faults(checks: Iterable[Check]) -> list[Fault]:
    """A fault for each option of the task that is not right."""
    return [
        Fault(f"task.{name}", f"{value!r} is not valid", expected)
        for name, value, right, expected in checks
        if not right
    ]


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number of at least 0 (``False`` is not one)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
