"""The values that a learned hyperparameter begins with, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping

from fds_dist.common.domain import interval
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.values import Row, Value, numbers_of, size_of
from fds_dist.config.hyperparameters import HyperparameterConfig, number_contradictions
from fds_dist.config.starts import CurveConfig, ShapedStart
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import shape_of
from fds_dist.schedule.starts import curve_values, schedule_values

LEAST = 0.01
"""On the log scale, a knot where a curve is 0 begins at this share of the curve's peak: 0 has no logarithm."""


def start_of(
    name: str, entry: HyperparameterConfig, key: str, bounds: tuple[float, float], began: Mapping[str, Row]
) -> Value:
    """What `Hyperparameter.init` is: a number, or a tuple of `buckets` or of `size` numbers.

    Args:
        name: with its parameter group: `lr.norm_and_bias`.
        key: the config's key of its `init`, for messages.
        bounds: what the optimizer can work with, where the config has no bounds.
        began: the values of the first outer step of a run that goes on, by name: they take the place of a file, which
            may have changed since.

    Raises:
        UserError: the file has no such values, or a value is out of range or not on the scale.
    """
    start: Value = entry.init
    if isinstance(entry.init, ShapedStart):
        start = began[name] if entry.init.kind == "file" and name in began else _values(name, entry.init, entry, key)
    numbers = numbers_of(start)
    faults = [Fault(key, each.problem, each.expected) for each in number_contradictions(base_of(name), entry, numbers)]
    if not faults and (wrong := [number for number in numbers if not bounds[0] <= number <= bounds[1]]):
        faults.append(Fault(key, f"{wrong[0]:g} is out of range", interval(*bounds)))
    if faults:
        raise UserError(faults)
    return tuple(start) if isinstance(start, list) else start


def _values(name: str, start: ShapedStart, entry: HyperparameterConfig, key: str) -> list[float]:
    shape = shape_of(entry.shape, entry.buckets)
    if start.kind == "file":
        schedule = _schedule(start.file, f"{key}.file")
        return schedule_values(schedule, _name_within(schedule, name, f"{key}.file", start.file), shape)
    curve: CurveConfig = getattr(start, start.kind)
    values = curve_values(start.kind, curve.peak, curve.floor, curve.warmup, shape)
    return [value or LEAST * curve.peak for value in values] if entry.scale == "log" else values


def _schedule(file: str, key: str) -> Schedule:
    try:
        return Schedule.load(file)
    except UserError as error:
        faults = error.faults
    raise UserError(Fault(key, str(Fault(fault.key, fault.problem)), fault.expected) for fault in faults)


def _name_within(schedule: Schedule, name: str, key: str, file: str) -> str:
    """The name in the schedule: that of the parameter group's copy, else that of all parameters."""
    rows = {**schedule.values, **{other: (value,) for other, value in schedule.fixed.items()}}
    for known in (name, base_of(name)):
        if known in rows and size_of(rows[known]) == 1:
            return known
        if known in rows:
            problem = f"{file}: {known} has {size_of(rows[known])} numbers per bucket"
            raise UserError(Fault(key, problem, "a schedule with one, or an init of numbers"))
    raise UserError(Fault(key, f"{file} has no {name}", f"a schedule with it, not of {', '.join(rows)}"))
