"""The `hyperparameters:` section: the settings of one hyperparameter, and checks across their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter

from fds_dist.common.domain import UNIT_INTERVAL, has_logarithm, interval, natural_domain
from fds_dist.common.kinds import Bound, LearnedCount, Name, Number, Positive, fault, read_by, show, wrong_kind
from fds_dist.config.sections import Contradiction, Section
from fds_dist.config.starts import LEFT_OUT, ShapedStart, Start

ShapeName = Literal["constant", "linear"]


class GroupOverride(Section):
    """The keys in which one parameter group's copy of a hyperparameter differs from the rest."""

    MEANINGFUL_ABSENCE = frozenset({"init", "buckets", "shape", "step", "min", "max", "scale"})

    init: Start = LEFT_OUT
    """The values before the first outer step, as in the hyperparameter itself."""

    buckets: LearnedCount = LEFT_OUT
    """The number of values over the horizon."""

    shape: ShapeName = LEFT_OUT
    """How the values become one for each step."""

    step: Positive = LEFT_OUT
    """Size of the first outer step."""

    min: Bound = None
    """Lower bound; null means none."""

    max: Bound = None
    """Upper bound; null means none."""

    scale: Literal["linear", "log"] = LEFT_OUT
    """The coordinate in which the outer optimizer moves."""


_NUMBER = TypeAdapter[float](Number)
_OVERRIDES = TypeAdapter(dict[Name, GroupOverride])


def _per_group(value: Any) -> bool | dict[str, GroupOverride]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise fault(wrong_kind(value), "true, false, or a mapping from group to the keys that differ there")
    return _OVERRIDES.validate_python(value)


class HyperparameterConfig(Section):
    """A learned hyperparameter."""

    MEANINGFUL_ABSENCE = frozenset({"min", "max"})
    DEPENDENT = frozenset({"init", "shape", "step", "scale"})

    init: Start
    """The values before the first outer step. A number, or a list of `size` numbers: that of every bucket. A list of
    `buckets` numbers. `{cosine: {peak, floor, warmup}}` or `{linear: ...}`: a warm-up and a decay. `{file: FILE}`: the
    schedule.json of an earlier search. Of a curve or a file, each bucket has the mean over its stretch of the horizon,
    and each knot of the shape linear the value where it stands. With a `size`: a number or a list of `size` alone.
    Default: what the optimizer usually takes; a hyperparameter of the loss needs one."""

    buckets: LearnedCount = 1
    """The number of values over the horizon."""

    shape: ShapeName = "constant"
    """constant: each value holds for a stretch of steps, all of the same length. linear: the values are knots at equal
    distances, the first at the first step and the last at the last, with straight lines between them, in the value
    itself whatever the `scale`. A single value is constant. Default: linear for several values; constant with
    `outer.optimizer: sign`."""

    size: LearnedCount = 1
    """The numbers of each value: above 1 the loss or `augment` of the task gets a tensor [size], such as a weight per
    class, per data source or per sample. All `buckets` · `size` numbers are learned."""

    step: Positive
    """Size of the first outer step, in units of the value (of its logarithm where `scale` is log). Default: 0.7 on the
    log scale; else half the start or a tenth of the range, whichever is less."""

    min: Bound = None
    """Lower bound; null: none. Default: that of the natural domain (0 for lr, momentum and weight_decay)."""

    max: Bound = None
    """Upper bound; null: none. Default: that of the natural domain (below 1 for momentum and betas, none for lr)."""

    scale: Literal["linear", "log"] = "linear"
    """The outer optimizer moves the value, or its logarithm (log(1 - x) for momentum, beta1 and beta2). Default: log
    where the natural domain and the start allow it; linear with `outer.optimizer: sign`."""

    per_group: Annotated[bool | dict[Name, GroupOverride], read_by(_per_group)] = False
    """One copy for each of `inner.groups`: true, or a mapping from group to the keys that differ there."""

    def bounds(self, name: str) -> tuple[float, float]:
        """(min, max) of the hyperparameter `name`. A bound that is left out is the natural one; null means no bound."""
        low, high = natural_domain(name)
        if "min" in self.model_fields_set:
            low = -math.inf if self.min is None else self.min
        if "max" in self.model_fields_set:
            high = math.inf if self.max is None else self.max
        return low, high

    def for_group(self, group: str) -> HyperparameterConfig:
        """This hyperparameter as it is learned for one parameter group."""
        settings = self.resolved()
        overrides = settings.pop("per_group")
        override = overrides.get(group, {}) if isinstance(overrides, dict) else {}
        return HyperparameterConfig.model_validate({**settings, **override})


def _hyperparameter(value: Any) -> float | HyperparameterConfig:
    if isinstance(value, (dict, HyperparameterConfig)):
        return HyperparameterConfig.model_validate(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _NUMBER.validate_python(value)
    raise fault(wrong_kind(value), "a number (fixed), or a mapping (learned), such as {buckets: 7}")


Hyperparameters = dict[Name, Annotated[float | HyperparameterConfig, read_by(_hyperparameter)]]


def hyperparameter_contradictions(
    name: str, entry: float | HyperparameterConfig, groups: tuple[str, ...]
) -> Iterator[Contradiction]:
    """The contradictions within one hyperparameter, with paths below its key. `groups`: `inner.groups`."""
    if not isinstance(entry, HyperparameterConfig):
        low, high = natural_domain(name)
        if not low <= entry <= high:
            yield Contradiction((), f"{_written(entry)} is out of range", interval(low, high))
        return
    contradictions = list(_start_contradictions(name, entry))
    yield from contradictions
    yield from _shape_contradictions(entry, groups)
    overrides = entry.per_group
    if overrides and not groups:
        yield Contradiction(("per_group",), "there are no groups", "groups in inner.groups", ("inner.groups",))
    elif isinstance(overrides, dict):
        for group, override in overrides.items():
            if group not in groups:
                names = ", ".join(groups)
                yield Contradiction(("per_group", group), "unknown group", f"one of {names}", ("inner.groups",))
            elif not contradictions:
                for contradiction in _start_contradictions(name, entry.for_group(group)):
                    below = contradiction.path if contradiction.path[0] in override.model_fields_set else ()
                    yield contradiction._replace(path=("per_group", group, *below))


def _shape_contradictions(entry: HyperparameterConfig, groups: tuple[str, ...]) -> Iterator[Contradiction]:
    """`shape: linear`, asked for by name, of a single value. A group that only asks for a single value is constant."""
    overrides = entry.per_group if isinstance(entry.per_group, dict) else {}
    for group in groups if overrides else ("",):
        override = overrides.get(group)
        keys = override.model_fields_set & {"shape", "buckets"} if override else set[str]()
        copy = entry.for_group(group) if override else entry
        is_asked_for = "shape" in entry.model_fields_set or "shape" in keys
        if is_asked_for and copy.shape == "linear" and copy.buckets == 1 and keys != {"buckets"}:
            path = ("per_group", group, "shape") if "shape" in keys else ("shape",)
            problem = "linear is not possible with 1 bucket: it needs a knot at each end"
            yield Contradiction(path, problem, "buckets of at least 2, or shape: constant")
            return


def _start_contradictions(name: str, entry: HyperparameterConfig) -> Iterator[Contradiction]:
    """The contradictions of a hyperparameter's start and its bounds; what a curve or a file gives is left to others."""
    low, high = entry.bounds(name)
    at_most = f"a number of at most {show(high)} (max)" if entry.max is not None else interval(low, high)
    if low > high and None not in (entry.min, entry.max):
        yield Contradiction(("min",), f"{show(low)} is above max", at_most)
    elif low > high:
        key, bound = ("min", low) if entry.min is not None else ("max", high)
        yield Contradiction((key,), f"{_written(bound)} is out of range", interval(*natural_domain(name)))
    elif isinstance(entry.init, ShapedStart):
        if entry.size > 1:
            problem = f"{entry.init.kind} gives one number per bucket, not {entry.size} (size)"
            expected = f"a number, or a list of {entry.size}"
            yield Contradiction(("init",), problem, expected, (f"hyperparameters.{name}.size",))
    elif isinstance(entry.init, list) and not _fits(entry.init, entry):
        length, key = (entry.size, "size") if entry.size > 1 else (entry.buckets, "buckets")
        expected = "a number" if length == 1 else f"a number, or a list of {length} ({key})"
        related = tuple(f"hyperparameters.{name}.{key}" for key in ("size", "buckets"))
        yield Contradiction(("init",), f"a list of {len(entry.init)} is not possible", expected, related)
    else:
        yield from number_contradictions(name, entry, entry.init if isinstance(entry.init, list) else [entry.init])


def _fits(numbers: list[float], entry: HyperparameterConfig) -> bool:
    """Whether the list has a number for each of `size`, or where that is 1 for each of the buckets."""
    return len(numbers) == entry.size or (entry.size == 1 and len(numbers) == entry.buckets)


def number_contradictions(name: str, entry: HyperparameterConfig, numbers: Sequence[float]) -> Iterator[Contradiction]:
    """The first of the numbers that `entry` begins with which is outside its bounds, or not on its log scale."""
    low, high = entry.bounds(name)
    at_least = f"a number of at least {show(low)} (min)" if entry.min is not None else interval(low, high)
    at_most = f"a number of at most {show(high)} (max)" if entry.max is not None else interval(low, high)
    if wrong := [number for number in numbers if not low <= number <= high]:
        expected = at_least if wrong[0] < low else at_most
        yield Contradiction(("init",), f"{_written(wrong[0])} is out of range", expected)
    elif entry.scale == "log" and (wrong := [number for number in numbers if not has_logarithm(name, number)]):
        if name in UNIT_INTERVAL:
            yield Contradiction(
                ("init",), f"{_written(wrong[0])} has no log(1 - x)", "a number below 1, or scale: linear"
            )
        else:
            yield Contradiction(
                ("init",), f"{_written(wrong[0])} has no logarithm", "a number above 0, or scale: linear"
            )


def _written(value: float) -> str:
    """The number without a trailing .0: 1 for 1.0."""
    return repr(value).removesuffix(".0")
