"""The `torch.optim` optimizer that a schedule was learned for, and the schedule prepared to drive it."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest
from fds_dist.schedule.driver import parameter_groups
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, InnerOptimizer


def inner_optimizer(schedule: Schedule) -> InnerOptimizer:
    """The optimizer that `schedule` was learned for.

    Raises:
        UserError: the schedule names no optimizer, or an unknown one.
    """
    name = str(schedule.optimizer.get("name", ""))
    if name not in INNER_OPTIMIZERS:
        problem = f"{name!r} is unknown" if name else "is missing"
        similar = nearest(name, INNER_OPTIMIZERS)
        raise UserError(Fault("schedule: optimizer.name", problem, f"one of {', '.join(INNER_OPTIMIZERS)}", similar))
    return INNER_OPTIMIZERS[name](bool(schedule.optimizer.get("nesterov", False)))


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
        for value in row
        if not math.isfinite(value)
    ]
    if not any(any(row) for name, row in rows.items() if base_of(name) == "lr"):
        expected = "a learned schedule (did the run end before its first update?)"
        faults.append(Fault("schedule: lr", "is 0 at every step, which trains nothing", expected))
    if faults:
        raise UserError(faults)
    return Schedule(horizon, schedule.values, fixed, schedule.optimizer)


def make_optimizer(schedule: Schedule, module: nn.Module) -> Optimizer:
    """The `torch.optim` optimizer for a `prepared` schedule, whose driver sets every value before the first step.

    Raises:
        UserError: the schedule's parameter groups do not fit the parameters of `module`.
    """
    parameters = parameter_groups(module, schedule)
    optimizer = inner_optimizer(schedule)
    if optimizer.name == "sgd":
        # The driver sets the momentum; torch.optim.SGD only accepts nesterov with a momentum above 0 here.
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, nesterov=bool(optimizer.switches["nesterov"]))
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.name](parameters)
