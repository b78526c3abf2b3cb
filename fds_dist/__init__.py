"""fds_dist: learn hyperparameter schedules by exact forward-mode hypergradients, over as many devices as there are.

Forward-mode differentiation with sharing (FDS): Micaelli & Storkey, "Gradient-based Hyperparameter Optimization Over
Long Horizons", NeurIPS 2021, arXiv 2007.07869.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fds_dist.commands.check.command import check
    from fds_dist.commands.optimize import RunResult, optimize
    from fds_dist.commands.verify import verify
    from fds_dist.common.faults import Fault, UserError
    from fds_dist.schedule.driver import ScheduleDriver, parameter_groups
    from fds_dist.schedule.schedule import Schedule, load_schedule
    from fds_dist.tasks.base import Task
    from fds_dist.tasks.datasets import task_from_datasets

__version__ = "0.1.0"

_HOMES = {
    "RunResult": "fds_dist.commands.optimize",
    "check": "fds_dist.commands.check.command",
    "optimize": "fds_dist.commands.optimize",
    "verify": "fds_dist.commands.verify",
    "Fault": "fds_dist.common.faults",
    "UserError": "fds_dist.common.faults",
    "Schedule": "fds_dist.schedule.schedule",
    "load_schedule": "fds_dist.schedule.schedule",
    "ScheduleDriver": "fds_dist.schedule.driver",
    "Task": "fds_dist.tasks.base",
    "parameter_groups": "fds_dist.schedule.driver",
    "task_from_datasets": "fds_dist.tasks.datasets",
}

__all__ = [
    "Fault",
    "RunResult",
    "Schedule",
    "ScheduleDriver",
    "Task",
    "UserError",
    "check",
    "load_schedule",
    "optimize",
    "parameter_groups",
    "task_from_datasets",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports public names where they are first used, so that loading a schedule needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
