"""A schedule: the value of each hyperparameter at each inner step. Needs no torch."""

from __future__ import annotations

import json
import operator
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import parse_json, write_output
from fds_dist.common.optimizers import BUILT_IN, HYPERPARAMETERS
from fds_dist.common.paths import expand_path
from fds_dist.common.values import Value, mapped, numbers_of
from fds_dist.schedule.content import FORMAT, VERSION, WITH_SHAPES, content_faults
from fds_dist.schedule.groups import base_of, group_of
from fds_dist.schedule.shapes import DEFAULT, Shape, shape_of, weighted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fds_dist.schedule.driver import ScheduleDriver

ALMOST_ZERO = 1e-300
"""Stands for momentum 0 in a schedule that also has other momenta. At exactly 0, `torch.optim.SGD` keeps no velocity,
and later steps would start without one or from an old one. In the search, the velocity is then the gradient."""


@dataclass(frozen=True)
class Schedule:
    """Values by hyperparameter and bucket over `horizon` steps.

    ```python
    schedule = Schedule.load("runs/digits/schedule.json")
    schedule.at(0)                      # {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    schedule.stretch(20_000).at(19_999)
    ```
    """

    horizon: int
    values: dict[str, tuple[Value, ...]]
    """Learned values, one per bucket: a number, or a tuple of numbers where the hyperparameter has a `size`."""
    fixed: dict[str, float] = field(default_factory=dict)
    """Hyperparameters that were not learned."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """The optimizer of the search, e.g. `{"name": "sgd", "nesterov": False}`. If the search used them, it also has the
    patterns of parameter groups under "groups" (see `fds_dist.schedule.groups`), the bounds on the gradient under
    "clip_gradient" (of each element) and "clip_norm" (of its Euclidean norm, afterwards) and the decay of the weights'
    moving average under "ema". "accumulate" is the number of micro-batches per batch, "precision" that of autocast.
    These a training loop must see to itself: `attach` sets hyperparameters alone. One of a user's own, `{"name":
    "package.module:Name"}`, has its arguments under "options" and the names of its hyperparameters under
    "hyperparameters"."""
    shapes: dict[str, str] = field(default_factory=dict)
    """Learned name → `constant` or `linear`, the way from the buckets' values to those of the steps (see
    `fds_dist.schedule.shapes`). Left out, and for a single value, it is constant."""

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; a schedule covers at least 1 step")
        empty = [name for name, values in self.values.items() if not values]
        if empty:
            raise ValueError(f"hyperparameters without a value: {', '.join(empty)}")
        others = set(self.loss_hyperparameters)
        vectors = [name for name, row in self.values.items() if any(isinstance(value, (tuple, list)) for value in row)]
        if vectors := [name for name in vectors if name not in others]:
            raise ValueError(f"hyperparameters of the optimizer with several numbers per bucket: {', '.join(vectors)}")
        if unknown := [name for name in self.shapes if name not in self.values]:
            raise ValueError(f"shapes of hyperparameters that were not learned: {', '.join(unknown)}")
        shapes = {name: shape for name, shape in self.shapes.items() if len(self.values[name]) > 1 and shape != DEFAULT}
        object.__setattr__(self, "shapes", shapes)  # so that equal schedules are equal

    @property
    def groups(self) -> tuple[str, ...]:
        """The parameter groups, in their order: `norm_and_bias` where there is an `lr.norm_and_bias`."""
        return tuple(dict.fromkeys(group for name in (*self.values, *self.fixed) if (group := group_of(name))))

    @property
    def loss_hyperparameters(self) -> tuple[str, ...]:
        """The hyperparameters of the loss: those that the optimizer does not have.

        If the schedule does not name a known optimizer, those that no known optimizer has.
        """
        facts = BUILT_IN.get(str(self.optimizer.get("name")))
        of_optimizer = self.optimizer.get("hyperparameters", HYPERPARAMETERS) if facts is None else facts.defaults
        return tuple(name for name in (*self.values, *self.fixed) if base_of(name) not in of_optimizer)

    def at(self, step: int) -> dict[str, Any]:
        """All hyperparameters at `step`, the fixed ones included: a float each, or a tuple of `size` floats. Steps
        past the horizon keep the values of its last step.

        Raises:
            ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        step = min(step, self.horizon - 1)
        return {**{name: self._value(name, step) for name in self.values}, **self.fixed}

    def shape(self, name: str) -> Shape:
        """The shape of a learned hyperparameter, with its buckets."""
        return shape_of(self.shapes.get(name, DEFAULT), len(self.values[name]))

    @property
    def places(self) -> dict[str, list[tuple[float, float]]]:
        """Learned name → where in the relative horizon each value stands; see `Shape.place`."""
        shapes = {name: self.shape(name) for name in self.values}
        return {
            name: [(float(start), float(stop)) for start, stop in map(shape.place, range(shape.buckets))]
            for name, shape in shapes.items()
        }

    def _value(self, name: str, step: int) -> Value:
        readings = self.shape(name).readings(step, self.horizon)
        values = [self.values[name][reading.bucket] for reading in readings]
        if len(values) == 1:
            return values[0]
        numbers = [weighted(readings, entries) for entries in zip(*map(numbers_of, values), strict=True)]
        return numbers[0] if isinstance(values[0], (int, float)) else tuple(numbers)

    def stretch(self, horizon: int) -> Schedule:
        """The same values over another number of steps.

        Raises:
            TypeError: `horizon` is not a whole number.
            ValueError: `horizon` is below 1.
        """
        return replace(self, horizon=operator.index(horizon))

    def for_optimizer(self) -> Schedule:
        """The schedule that a `torch.optim` optimizer needs to train as in the search.

        It lacks the hyperparameters of the loss, and has `ALMOST_ZERO` for a momentum of 0 beside other momenta.
        """
        others = self.loss_hyperparameters
        values = {
            name: tuple(value or ALMOST_ZERO for value in row) if base_of(name) == "momentum" and any(row) else row
            for name, row in self.values.items()
            if name not in others
        }
        fixed, shapes = (
            {name: entry for name, entry in part.items() if name not in others} for part in (self.fixed, self.shapes)
        )
        return replace(self, values=values, fixed=fixed, shapes=shapes)

    def attach(self, optimizer: Any, horizon: int | None = None, *, fixed: bool = False) -> ScheduleDriver:
        """An LR scheduler that sets these values on a `torch.optim` optimizer, step by step.

        Args:
            optimizer: an optimizer of `torch.optim`, or a wrapper of one. Learned values are set at once, and then at
                each `step()` of the driver.
            horizon: the number of optimizer steps to stretch the schedule to; None: the horizon of the search.
            fixed: also set the hyperparameters that the search held fixed. By default they stay as `optimizer` has
                them, and a warning names those that have only a default with another value.

        Raises:
            UserError: the optimizer does not fit the schedule; see `fds_dist.schedule.driver.ScheduleDriver`.
        """
        from fds_dist.schedule.driver import ScheduleDriver

        return ScheduleDriver(optimizer, self if horizon is None else self.stretch(horizon), fixed=fixed)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the learned values over the steps with matplotlib.

        Args:
            ax: where to draw; None: a new figure.

        Returns:
            The axes, to change or to save: `schedule.plot().figure.savefig("schedule.png")`.
        """
        from fds_dist.schedule.picture import plot

        return plot(self, ax)

    def _repr_html_(self) -> str:
        from fds_dist.schedule.picture import html

        return html(self)

    def to_json(self) -> str:
        """The schedule as JSON text, from which `from_json` reads the same bits."""
        content = {
            "format": FORMAT,
            "version": WITH_SHAPES if self.shapes else VERSION,
            "horizon": self.horizon,
            **({"shape": self.shapes} if self.shapes else {}),
            "hyperparameters": {name: list(values) for name, values in self.values.items()},
            "fixed": self.fixed,
            "optimizer": self.optimizer,
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "schedule") -> Schedule:
        """The schedule that `to_json` wrote.

        Raises:
            UserError: the text is not JSON, or not a schedule; the message names `source` and the key.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise UserError(Fault(source, f"is not JSON ({error})", "a file written by `fds-dist optimize`")) from None
        faults = content_faults(content, source)
        if faults:
            raise UserError(faults)
        values = {
            name: tuple(mapped(float, value) for value in row) for name, row in content["hyperparameters"].items()
        }
        fixed = {name: float(value) for name, value in content.get("fixed", {}).items()}
        try:
            return cls(content["horizon"], values, fixed, content.get("optimizer", {}), content.get("shape", {}))
        except ValueError as error:
            raise UserError(Fault(f"{source}: hyperparameters", str(error), "one number per bucket")) from None

    def save(self, path: str | Path) -> None:
        """Writes `to_json()` to `path`.

        Raises:
            WriteFailed: the file cannot be written; one that was there has its old content.
        """
        write_output(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Reads a schedule from `path`, or from `path/schedule.json` where `path` is a run's folder.

        Raises:
            UserError: the file is missing, or is not a schedule.
        """
        file = expand_path(path)
        file = file / "schedule.json" if os.path.isdir(file) else file
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(Fault(str(file), f"cannot be read ({error})", "a schedule.json")) from None
        return cls.from_json(text, str(file))


def load_schedule(path: str | Path) -> Schedule:
    """The learned schedule in a `schedule.json` or in a run's folder; the same as `Schedule.load`."""
    return Schedule.load(path)
