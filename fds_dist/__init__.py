"""fds_dist: learn hyperparameter schedules by exact forward-mode hypergradients, over as many devices as there are.

Forward-mode differentiation with sharing (FDS): Micaelli & Storkey, "Gradient-based Hyperparameter Optimization Over
Long Horizons", NeurIPS 2021, arXiv 2007.07869.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fds_dist.commands.bench.command import bench
    from fds_dist.commands.bench.report import BenchReport
    from fds_dist.commands.check.command import CheckResult, check
    from fds_dist.commands.compare.command import CompareResult, compare
    from fds_dist.commands.export import export
    from fds_dist.commands.noise.command import NoiseResult, noise
    from fds_dist.commands.optimize.command import optimize
    from fds_dist.commands.report.command import report
    from fds_dist.commands.retrain.command import Retraining, retrain
    from fds_dist.commands.run import Run, RunResult, load_run
    from fds_dist.commands.verify.command import VerifyResult, verify
    from fds_dist.common.faults import Fault, UserError
    from fds_dist.schedule.driver import ScheduleDriver, parameter_groups
    from fds_dist.schedule.schedule import Schedule, load_schedule
    from fds_dist.tangents.optimizers.plain import make_optimizer
    from fds_dist.tasks.base import Task
    from fds_dist.tasks.datasets import task_from_datasets
    from fds_dist.tracking.callbacks import Callback, Stop
    from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart
    from fds_dist.tracking.trackers import Tracker

__version__ = "0.1.0"

_HOMES = {
    "BenchReport": "fds_dist.commands.bench.report",
    "Callback": "fds_dist.tracking.callbacks",
    "CheckResult": "fds_dist.commands.check.command",
    "CompareResult": "fds_dist.commands.compare.command",
    "Fault": "fds_dist.common.faults",
    "InnerBlock": "fds_dist.tracking.records",
    "NoiseResult": "fds_dist.commands.noise.command",
    "OuterRecord": "fds_dist.tracking.records",
    "Retraining": "fds_dist.commands.retrain.command",
    "Run": "fds_dist.commands.run",
    "RunEnd": "fds_dist.tracking.records",
    "RunResult": "fds_dist.commands.run",
    "RunStart": "fds_dist.tracking.records",
    "Schedule": "fds_dist.schedule.schedule",
    "ScheduleDriver": "fds_dist.schedule.driver",
    "Stop": "fds_dist.tracking.callbacks",
    "Task": "fds_dist.tasks.base",
    "Tracker": "fds_dist.tracking.trackers",
    "UserError": "fds_dist.common.faults",
    "VerifyResult": "fds_dist.commands.verify.command",
    "bench": "fds_dist.commands.bench.command",
    "check": "fds_dist.commands.check.command",
    "compare": "fds_dist.commands.compare.command",
    "export": "fds_dist.commands.export",
    "load_run": "fds_dist.commands.run",
    "load_schedule": "fds_dist.schedule.schedule",
    "make_optimizer": "fds_dist.tangents.optimizers.plain",
    "noise": "fds_dist.commands.noise.command",
    "optimize": "fds_dist.commands.optimize.command",
    "parameter_groups": "fds_dist.schedule.driver",
    "report": "fds_dist.commands.report.command",
    "retrain": "fds_dist.commands.retrain.command",
    "task_from_datasets": "fds_dist.tasks.datasets",
    "verify": "fds_dist.commands.verify.command",
}
"""Public name to the module that defines it."""

__all__ = [
    "BenchReport",
    "Callback",
    "CheckResult",
    "CompareResult",
    "Fault",
    "InnerBlock",
    "NoiseResult",
    "OuterRecord",
    "Retraining",
    "Run",
    "RunEnd",
    "RunResult",
    "RunStart",
    "Schedule",
    "ScheduleDriver",
    "Stop",
    "Task",
    "Tracker",
    "UserError",
    "VerifyResult",
    "bench",
    "check",
    "compare",
    "export",
    "load_run",
    "load_schedule",
    "make_optimizer",
    "noise",
    "optimize",
    "parameter_groups",
    "report",
    "retrain",
    "task_from_datasets",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used, so that loading a schedule needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """All names, those that are not imported yet too."""
    return sorted({*globals(), *__all__})
