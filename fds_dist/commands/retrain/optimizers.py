"""The optimizer that a schedule was learned for, and the schedule prepared to drive it."""

from __future__ import annotations

import math
from dataclasses import replace

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.values import flat
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers import InnerOptimizer, optimizer_of


def inner_optimizer(schedule: Schedule) -> InnerOptimizer:
    """The optimizer that `schedule` was learned for.

    Raises:
        UserError: the schedule names no optimizer, or an unknown one.
    """
    return optimizer_of(schedule.optimizer)


def prepared(schedule: Schedule, horizon: int) -> Schedule:
    """`schedule` over `horizon` steps, with the optimizer's defaults for the hyperparameters that it leaves out.

    Raises:
        UserError: with every fault: the learning rate is 0 at every step, or a value is not finite.
    """
    defaults = inner_optimizer(schedule).defaults
    present = {base_of(name) for name in (*schedule.values, *schedule.fixed)}
    fixed = {name: value for name, value in defaults.items() if name not in present} | schedule.fixed
    rows = schedule.values | {name: (value,) for name, value in fixed.items()}
    faults = [
        Fault(f"schedule: {name}", f"{value} is not finite", "a finite number (did the run diverge?)")
        for name, row in rows.items()
        for value in flat(row)
        if not math.isfinite(value)
    ]
    if not any(any(row) for name, row in rows.items() if base_of(name) == "lr"):
        expected = "a learned schedule (did the run end before its first update?)"
        faults.append(Fault("schedule: lr", "is 0 at every step, which trains nothing", expected))
    if faults:
        raise UserError(faults)
    return replace(schedule, horizon=horizon, fixed=fixed)
