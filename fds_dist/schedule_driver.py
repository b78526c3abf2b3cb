"""Drives a `torch.optim` optimizer by a learned schedule, with the interface of an LR scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from fds_dist.faults import Fault, UserError
from fds_dist.schedule import Schedule

Setter = Callable[[dict[str, Any], float], None]

ALMOST_ZERO = 1e-300
"""Stands for momentum 0 in a schedule that has other momenta too. At exactly 0 `torch.optim.SGD` keeps no velocity, and
later steps would start from none or from an old one; the formula that the schedule was learned with keeps it at g."""


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

    Hyperparameters of the loss are left alone: read them from `driver.values`. Where momentum is 0 on some buckets and
    not on others, the optimizer gets 1e-300 for 0, so that it keeps its velocity.

    Raises:
        UserError: the optimizer has no such hyperparameter.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self._use(schedule, 0)

    def _use(self, schedule: Schedule, last_epoch: int) -> None:
        """Goes on with `schedule` at step `last_epoch`, if the optimizer has all that it sets."""
        wanted = schedule.optimizer.get("name", "the one it was learned for")
        faults = [
            Fault(name, f"{type(self.optimizer).__name__} has no {_SETTERS[name][0]}", f"an optimizer like {wanted}")
            for name in schedule.at(0)
            if name in _SETTERS and any(_SETTERS[name][0] not in group for group in self.optimizer.param_groups)
        ]
        if faults:
            raise UserError(faults)
        self.schedule, self.last_epoch = schedule, last_epoch
        self._apply()

    def _apply(self) -> None:
        values = self.values
        if any(self.schedule.values.get("momentum", ())):
            values["momentum"] = values["momentum"] or ALMOST_ZERO
        for group in self.optimizer.param_groups:
            for name in values.keys() & _SETTERS.keys():
                _SETTERS[name][1](group, values[name])

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
