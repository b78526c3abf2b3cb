"""Drives a `torch.optim` optimizer by a learned schedule, as an LR scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import trainable_parameters
from fds_dist.schedule.fit import fit_faults, fit_remarks
from fds_dist.schedule.groups import assigned
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.settings import settings, write_all


def parameter_groups(module: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """The trained parameters of `module` as a `torch.optim` optimizer takes them, sorted by `schedule`'s groups.

    ```python
    schedule = fds_dist.load_schedule("runs/digits")
    optimizer = torch.optim.SGD(fds_dist.parameter_groups(model, schedule), lr=0.1, momentum=0.9)
    driver = schedule.attach(optimizer)
    ```

    Each entry has "params" and a "name", by which `ScheduleDriver` knows it; a schedule without parameter groups gives
    one entry without a name. The patterns must match the names that the parameters had in the search: pass the network
    itself, before `DistributedDataParallel` or `torch.compile` wraps it.

    Raises:
        UserError: the schedule lacks the patterns of its groups, or the patterns do not fit these parameters.
        ValueError: the module has no trained parameters.
    """
    parameters = trainable_parameters(module)
    if not schedule.groups:
        return [{"params": list(parameters.values())}]
    patterns, key = schedule.optimizer.get("groups"), "schedule: optimizer.groups"
    if not isinstance(patterns, dict) or not all(isinstance(pattern, str) for pattern in patterns.values()):
        raise UserError(Fault(key, f"{patterns!r} is not valid", f"a pattern for each of {', '.join(schedule.groups)}"))
    group = assigned(patterns, parameters, key)
    return [
        {"name": name, "params": [parameter for key, parameter in parameters.items() if group[key] == name]}
        for name in patterns
    ]


class ScheduleDriver(LRScheduler):
    """Sets the learned values on every parameter group: those of step 0 at once, those of the next step at `step()`.

    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = fds_dist.load_schedule("runs/digits").attach(optimizer, horizon=epochs * len(loader))
    for x, y in batches:
        ...
        optimizer.step()
        driver.step()       # after optimizer.step(), as every LR scheduler
    ```

    - Hyperparameters that the search held fixed stay as the optimizer has them, unless `fixed` is true. A warning names
      those that have only the optimizer's default, and an optimizer whose formula is not the search's.
    - Past the horizon the last values stay.
    - Tensors, such as `lr=torch.tensor(0.1)`, are filled in place: compiled and captured steps see the new values.
    - A value for one parameter group, `lr.norm_and_bias`, goes to the optimizer's group with that "name": see
      `parameter_groups`.
    - Hyperparameters of the loss are left alone: read them from `driver.values`.
    - The gradient is yours to clip as in the search: `schedule.optimizer` has the bounds "clip_gradient" (of
      `torch.nn.utils.clip_grad_value_`) and, for the call after it, "clip_norm" (of `clip_grad_norm_`).
    - So is the average of the weights, where `schedule.optimizer` has "ema", the decay for
      `torch.optim.swa_utils.get_ema_multi_avg_fn`: the schedule was learned for the average.
    - If momentum is 0 on some buckets but not on others, the optimizer gets 1e-300 in place of 0, so that it keeps its
      velocity.
    - Under `SequentialLR` the schedule starts at its milestone; until then the optimizer has the first values, except
      the learning rate. The values are absolute: a learning rate that another scheduler has set is overwritten at the
      next step, with a warning.
    - Accelerate calls a prepared scheduler once per process at each optimizer step: attach it with the horizon
      `optimizer_steps * accelerator.num_processes`, unless the Accelerator splits batches.

    Raises:
        UserError: `optimizer` is not an optimizer, has no place for a learned hyperparameter, has other groups than the
            schedule, or shares one tensor between settings that need two values.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, *, fixed: bool = False) -> None:
        self._sets_fixed = fixed
        self._first_came_early = self._has_warned = False
        self.optimizer = _driveable(optimizer)
        self._use(schedule)
        for remark in dict.fromkeys(fit_remarks(self.optimizer, schedule, self._driven)):
            warnings.warn(remark, stacklevel=3)
        super().__init__(self.optimizer)

    def _use(self, schedule: Schedule) -> None:
        """Adopts `schedule` if the optimizer has a place for every value to set."""
        driven = schedule.for_optimizer()
        driven = driven if self._sets_fixed else replace(driven, fixed={})
        if faults := fit_faults(self.optimizer, schedule, driven):
            raise UserError(faults)
        self.schedule, self._driven = schedule, driven
        self._checked_groups = tuple(map(id, self.optimizer.param_groups))

    @property
    def values(self) -> dict[str, float]:
        """The schedule's values of all hyperparameters, fixed ones included, for the next optimizer step."""
        return self.schedule.at(max(self.last_epoch, 0))

    def step(self, epoch: int | None = None) -> None:
        """Moves on to the values of the next optimizer step, or to those of step `epoch`.

        Raises:
            UserError: the optimizer's parameter groups have changed and no longer fit the schedule.
        """
        if epoch is None and self.last_epoch >= 0:
            self._warn_of_order()
            self._warn_of_changes()
        # Not `super().step()`: it warns about an order of calls that it cannot know, and about `epoch`, exact here.
        self._step_count += 1
        self._update_lr(epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Sets every value of the step `last_epoch` on the optimizer; returns the learning rate of each group."""
        if self._checked_groups != tuple(map(id, self.optimizer.param_groups)):  # groups were added or loaded
            self._use(self.schedule)
        write_all(self.optimizer.param_groups, self._driven.at(self.last_epoch))
        return self.get_last_lr()

    def get_last_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group; a tensor is copied."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the step count, the schedule, and whether the optimizer has the schedule's values now."""
        active = self.last_epoch >= 0 and not self._changes(every_device=True)
        return {"last_epoch": self.last_epoch, "schedule": self.schedule.to_json(), "active": active}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from `state_dict`, with its schedule and its horizon.

        Sets the values of that step, unless another scheduler had set the optimizer's values when the state was saved.

        Raises:
            UserError: it is not the state of a driver, or the optimizer does not fit its schedule.
        """
        step = state_dict.get("last_epoch")
        if not isinstance(step, int) or step < -1 or not isinstance(state_dict.get("schedule"), str):
            problem = f"has the keys {', '.join(map(str, state_dict)) or 'of nothing'}"
            raise UserError(Fault("state_dict", problem, "what ScheduleDriver.state_dict() returned"))
        schedule, attached = Schedule.from_json(state_dict["schedule"], "state_dict: schedule"), self.schedule
        self._use(schedule)
        if schedule != attached and schedule.stretch(attached.horizon) == attached:
            warnings.warn(
                f"the saved state's horizon of {schedule.horizon} steps replaces the {attached.horizon} of attach",
                stacklevel=2,
            )
        self.last_epoch, self._step_count = step, step + 1
        if step >= 0 and state_dict.get("active", True):
            write_all(self.optimizer.param_groups, self._driven.at(step))
        self._last_lr = self.get_last_lr()

    def _changes(self, every_device: bool = False) -> list[str]:
        """Settings that no longer have the driver's value. Tensors on an accelerator are skipped, to avoid waiting."""
        values = self._driven.at(self.last_epoch)
        return [
            f"{setting} is {float(setting.value):g}, but the schedule's driver set {values[setting.name]:g}"
            for setting in settings(self.optimizer.param_groups[: len(self._last_lr)], values)
            if every_device or getattr(setting.value, "is_cpu", True)
            if not setting.holds(values[setting.name])
        ]

    def _warn_of_changes(self) -> None:
        if not self._has_warned and (changes := self._changes()):
            self._has_warned = True
            warnings.warn(
                f"{changes[0]}: another scheduler, or other code, changed it. The driver sets the schedule's value "
                "at each step; let torch.optim.lr_scheduler.SequentialLR run other schedulers before or after it",
                stacklevel=3,
            )

    def _warn_of_order(self) -> None:
        """Warns at the second step if the first came before any optimizer step, and the optimizer has stepped since."""
        stepped = getattr(self.optimizer, "_opt_called", False)  # kept by LRScheduler
        if self._step_count == 1:
            self._first_came_early = not stepped
        elif self._step_count == 2 and self._first_came_early and stepped:
            warnings.warn(
                "the driver's first step() came before the first optimizer.step(), so that no optimizer step used the "
                "schedule's first values: call driver.step() after optimizer.step() (a gradient scaler that skipped "
                "the first step has the same effect, which is harmless)",
                stacklevel=3,
            )


def _driveable(optimizer: Any) -> Optimizer:
    """`optimizer`, or the `torch.optim` optimizer inside a wrapper such as DeepSpeed's.

    Raises:
        UserError: there is no `torch.optim` optimizer.
    """
    inner = optimizer
    while not isinstance(inner, Optimizer):
        if not hasattr(inner, "optimizer"):
            name = type(optimizer).__name__
            raise UserError(Fault("optimizer", f"{name} is not an optimizer", "an instance of torch.optim.Optimizer"))
        inner = inner.optimizer
    return inner
