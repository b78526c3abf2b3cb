"""Checks whether a schedule can drive an optimizer, and how that optimizer differs from the one in the search."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fds_dist.common.faults import Fault
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.common.registry import nearest
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.settings import Setting, place_of, settings

OPTIONS = {"dampening": 0, "amsgrad": False, "maximize": False, "warmup_steps": 0}
"""Options of `torch.optim` and of the package schedulefree that change an optimizer's formula → their values in the
formulas of the search, beside the switches of the built-in optimizers."""

_DECORATIONS = re.compile(r"deepspeed|fused|paged|cpu|\d+bit")
"""Additions of other libraries to the name of an optimizer whose formula they keep: `FusedAdam`, `AdamW8bit`."""


def fit_faults(optimizer: Optimizer, schedule: Schedule, driven: Schedule) -> list[Fault]:
    """The faults that keep `schedule` from driving `optimizer`; `driven` is the part of it that would be set."""
    return [
        *_place_faults(optimizer, schedule, driven),
        *_group_faults(optimizer, schedule),
        *_shared_tensor_faults(optimizer, schedule, driven),
    ]


def fit_remarks(optimizer: Optimizer, schedule: Schedule, driven: Schedule) -> Iterator[str]:
    """The differences between training by `driven` on `optimizer` and the search of `schedule`, one line each."""
    yield from _formula_remarks(optimizer, schedule)
    yield from _fixed_remarks(optimizer, schedule, driven)
    changing = [name for name, row in driven.values.items() if len(set(row)) > 1]
    numbers = {
        place_of(setting.name, setting.group).key
        for setting in settings(optimizer.param_groups, changing)
        if setting.group.get("capturable") and not isinstance(setting.value, Tensor)
    }
    if numbers:
        yield (
            f"{type(optimizer).__name__}(capturable=True) has plain numbers for {', '.join(sorted(numbers))}, "
            "which are constants in a captured CUDA graph: use tensors (lr=torch.tensor(0.1)), or capture anew at each "
            "change"
        )


def _formula_remarks(optimizer: Optimizer, schedule: Schedule) -> Iterator[str]:
    """Remarks on an optimizer, or on its options, that the schedule was not learned for."""
    learned_for, class_name = str(schedule.optimizer.get("name", "")), type(optimizer).__name__
    if not learned_for:
        return
    facts = BUILT_IN.get(learned_for)
    names = (learned_for.rpartition(":")[2], facts.package_class if facts else "")
    if _formula(optimizer) not in map(str.lower, names):
        lacking = _lacking(optimizer, schedule)
        rest = f"; {class_name} has no place for {', '.join(lacking)}" if lacking else ""
        optimizers = f"the schedule was learned for {learned_for} and drives {class_name}"
        yield f"{optimizers}, with which the same values train differently{rest}"
        return
    switches = facts.switches if facts else {}
    options = {key: schedule.optimizer.get(key, usual) for key, usual in {**switches, **OPTIONS}.items()}
    others = {
        f"{key}={group[key]} (learned with {key}={value})": None
        for group in optimizer.param_groups
        for key, value in options.items()
        if group.get(key, value) != value
    }
    if others:
        yield f"the schedule was learned for {learned_for} and drives {class_name} with {', '.join(others)}"


def _fixed_remarks(optimizer: Optimizer, schedule: Schedule, driven: Schedule) -> Iterator[str]:
    """Remarks on hyperparameters that were fixed in the search and have another default value in the optimizer."""
    fixed = {name: value for name, value in schedule.for_optimizer().fixed.items() if name not in driven.fixed}
    parameters = inspect.signature(type(_innermost(optimizer))).parameters
    for setting in settings(optimizer.param_groups, fixed):
        place, value = place_of(setting.name, setting.group), fixed[setting.name]
        default = parameters[place.key].default if place.key in parameters else None
        if not isinstance(default, (int, float, tuple)) or setting.holds(value):
            continue
        default = place.entry(default)
        if setting.holds(default):
            yield (
                f"{setting.name} was fixed at {value:g} in the search; {type(optimizer).__name__} keeps its default of "
                f"{default:g}: set it on the optimizer, or attach with fixed=True"
            )


def _place_faults(optimizer: Optimizer, schedule: Schedule, driven: Schedule) -> list[Fault]:
    """Faults of all hyperparameters that have no place in the optimizer, if one of them is to be set."""
    lacking = _lacking(optimizer, schedule)
    if not any(base_of(name) in lacking for name in driven.at(0)):
        return []
    class_name, wanted = type(optimizer).__name__, schedule.optimizer.get("name", "the one it was learned for")
    return [Fault(base, f"{class_name} has no {place_of(base).key}", f"an optimizer like {wanted}") for base in lacking]


def _shared_tensor_faults(optimizer: Optimizer, schedule: Schedule, driven: Schedule) -> Iterator[Fault]:
    """Faults of tensors that two hyperparameters share, if at least one of the two is to be set."""
    written, first_places = driven.at(0), dict[int, Setting]()
    for setting in settings(optimizer.param_groups, schedule.for_optimizer().at(0)):
        if isinstance(setting.value, Tensor):
            first = first_places.setdefault(id(setting.value), setting)
            if first.name != setting.name and (first.name in written or setting.name in written):
                problem = f"its {setting.name} is the same tensor as {first}"
                yield Fault(f"param_groups[{setting.group_index}]", problem, "a separate tensor for each value")


def _lacking(optimizer: Optimizer, schedule: Schedule) -> list[str]:
    """The schedule's hyperparameters, learned or fixed, for which some parameter group has no place."""
    bases = dict.fromkeys(map(base_of, schedule.for_optimizer().at(0)))
    return [base for base in bases if any(not place_of(base, group).is_in(group) for group in optimizer.param_groups)]


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside all wrappers, such as Accelerate's."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _formula(optimizer: Optimizer) -> str:
    """The lower-case name of the optimizer's formula, such as `adamw`; for another library's class, the class name."""
    inner = _innermost(optimizer)
    if isinstance(formula := getattr(inner, "formula", None), str):  # our pure one's
        return formula.rpartition(":")[2].lower()
    classes = [cls for cls in type(inner).__mro__ if cls.__module__.startswith("torch.optim.") and cls is not Optimizer]
    name = _DECORATIONS.sub("", (classes[0] if classes else type(inner)).__name__.lower())
    decoupled = any(group.get("decoupled_weight_decay") for group in inner.param_groups)
    return "adamw" if name == "adam" and (decoupled or getattr(inner, "adam_w_mode", False)) else name


def _group_faults(optimizer: Optimizer, schedule: Schedule) -> list[Fault]:
    """Faults of groups that only the optimizer has, or only the schedule."""
    wanted = schedule.groups
    if not wanted:
        return []
    names = [group.get("name") for group in optimizer.param_groups]
    expected = f"{', '.join(wanted)}, as made by fds_dist.parameter_groups(model, schedule)"
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
