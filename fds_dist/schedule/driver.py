"""Drives a `torch.optim` optimizer by a learned schedule, with the interface of an LR scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.registry import nearest
from fds_dist.schedule.groups import assigned, base_of, group_of
from fds_dist.schedule.schedule import Schedule

Setter = Callable[[dict[str, Any], float], None]


def _set(key: str) -> Setter:
    def set_value(group: dict[str, Any], value: float) -> None:
        group[key] = value

    return set_value


def _set_beta(position: int) -> Setter:
    def set_value(group: dict[str, Any], value: float) -> None:
        betas = list(group["betas"])
        betas[position] = value
        group["betas"] = tuple(betas)

    return set_value


_SETTERS: dict[str, tuple[str, Setter]] = {
    "lr": ("lr", _set("lr")),
    "momentum": ("momentum", _set("momentum")),
    "weight_decay": ("weight_decay", _set("weight_decay")),
    "eps": ("eps", _set("eps")),
    "beta1": ("betas", _set_beta(0)),
    "beta2": ("betas", _set_beta(1)),
}
"""Hyperparameter to the key of a parameter group that it needs, and how to set it."""


def parameter_groups(module: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """The trained parameters of `module` as a `torch.optim` optimizer takes them, sorted by `schedule`'s groups.

    ```python
    schedule = fds_dist.load_schedule("runs/digits")
    optimizer = torch.optim.SGD(fds_dist.parameter_groups(model, schedule), lr=0.1, momentum=0.9)
    driver = schedule.attach(optimizer)
    ```

    Each entry has "params", and "name", by which `ScheduleDriver` knows it; a schedule without parameter groups gives
    one entry without a name. The patterns are searched in the names that the parameters had when the schedule was
    learned: give the network itself, before `DistributedDataParallel` or `torch.compile` wraps it.

    Raises:
        UserError: the schedule does not say how its groups are made, or its patterns do not fit these parameters.
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


class ScheduleDriver:
    """Sets the schedule's values on every parameter group: those of step 0 at once, those of the next at `step()`.

    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = fds_dist.load_schedule("runs/digits").attach(optimizer, horizon=epochs * len(loader))
    for x, y in batches:
        ...
        optimizer.step()
        driver.step()       # after optimizer.step(), like an LR scheduler
    ```

    A value for one parameter group, `lr.norm_and_bias`, goes to the optimizer's group with that "name": see
    `parameter_groups`. Hyperparameters of the loss are left alone: read them from `driver.values`. Where momentum is 0
    on some buckets and not on others, the optimizer gets 1e-300 for 0, so that it keeps its velocity.

    Raises:
        UserError: the optimizer has no such hyperparameter, or its groups are not the schedule's.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self._use(schedule, 0)

    def _use(self, schedule: Schedule, last_epoch: int) -> None:
        """Goes on with `schedule` at step `last_epoch`, if the optimizer has all that it sets."""
        wanted = schedule.optimizer.get("name", "the one it was learned for")
        settings = schedule.for_optimizer()
        faults = [
            Fault(name, f"{type(self.optimizer).__name__} has no {_SETTERS[name][0]}", f"an optimizer like {wanted}")
            for name in dict.fromkeys(map(base_of, settings.at(0)))
            if any(_SETTERS[name][0] not in group for group in self.optimizer.param_groups)
        ]
        faults += _group_faults(self.optimizer, schedule)
        if faults:
            raise UserError(faults)
        self.schedule, self.last_epoch, self._settings = schedule, last_epoch, settings
        self._apply()

    def _apply(self) -> None:
        for name, value in self._settings.at(self.last_epoch).items():
            for group in self.optimizer.param_groups:
                if group_of(name) in ("", group.get("name")):
                    _SETTERS[base_of(name)][1](group, value)

    @property
    def values(self) -> dict[str, float]:
        """All hyperparameters of the coming optimizer step."""
        return self.schedule.at(self.last_epoch)

    def step(self) -> None:
        """Moves on to the values of the next optimizer step; past the horizon the last ones stay."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step count and the schedule, as plain values."""
        return {"last_epoch": self.last_epoch, "schedule": self.schedule.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` stood, with the schedule that it held.

        Raises:
            UserError: the optimizer has not all of that schedule's hyperparameters.
        """
        self._use(Schedule.from_json(state["schedule"]), state["last_epoch"])


def _group_faults(optimizer: Optimizer, schedule: Schedule) -> list[Fault]:
    """Groups of the optimizer that are not the schedule's, and the other way round."""
    wanted = schedule.groups
    if not wanted:
        return []
    names = [group.get("name") for group in optimizer.param_groups]
    expected = f"{', '.join(wanted)}, as by fds_dist.parameter_groups(model, schedule)"
    faults = [
        Fault(
            f"param_groups[{index}]",
            "has no name" if name is None else f"the schedule has no parameter group {name!r}",
            f"a name of {expected}",
            "" if name is None else nearest(str(name), wanted),
        )
        for index, name in enumerate(names)
        if name not in wanted
    ]
    missing = [name for name in wanted if name not in names]
    if missing and not faults:
        problem = f"{type(optimizer).__name__} has no parameter group {', '.join(missing)}"
        faults.append(Fault("param_groups", problem, f"groups with the names {expected}"))
    return faults
