"""What the numbers of an outer loop's state mean: which hyperparameter each belongs to, and which rule moves them.

A checkpoint holds it beside the state. A run that goes on compares it with its config, so that no number is read as
another hyperparameter's, and no rule takes over what another one has gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.records import Count, Finite, NonNegative, from_values
from fds_dist.common.values import few, flat, size_of
from fds_dist.inner.problem import Problem
from fds_dist.outer.progress import OuterProgress
from fds_dist.outer.rules import Element, OuterRule
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tracking.records import OuterRecord

ROUNDING = 1e-9
"""Relative difference of two starts that counts as none: versions may round a curve differently."""


@dataclass(frozen=True)
class Learned:
    """One hyperparameter, or its copy for a parameter group, whose `buckets · size` elements follow each other in λ."""

    name: str
    buckets: Count
    size: Count
    init: list[Finite]
    """[buckets · size] Its elements before the first outer step."""
    shape: str = ""
    """"" here, as in `scale`, and 0 in `step`: not known, as in the checkpoints of earlier versions."""
    scale: str = ""
    step: NonNegative = 0.0
    """The config's step, in units of the scale; that of each element is in `OuterState`."""

    @property
    def count(self) -> int:
        """How many elements of λ are its own."""
        return self.buckets * self.size

    def __str__(self) -> str:
        """`lr ×2`; `weights ×2 of 10` where each bucket has 10 numbers."""
        return f"{self.name} ×{self.buckets}" + (f" of {self.size}" if self.size > 1 else "")


@dataclass(frozen=True)
class Meaning:
    """What the K numbers of an outer state are."""

    learned: list[Learned]
    """In the order of λ."""
    rule: str = ""
    """The kind of outer rule whose moments the state holds; "": not known."""
    groups: list[tuple[str, str]] | None = None
    """The parameter groups with copies of a hyperparameter, (name, pattern) in order; None: not known."""

    @property
    def size(self) -> int:
        """K."""
        return sum(learned.count for learned in self.learned)

    def __str__(self) -> str:
        return few(map(str, self.learned))


def meaning_of(problem: Problem, rule: OuterRule) -> Meaning:
    """What the numbers of a state for `problem` and `rule` are."""
    learned = [
        Learned(each.name, each.buckets, each.size, list(each.start), each.shape, each.scale, each.step)
        for each in problem.space.learned
    ]
    return Meaning(learned, rule.kind, list(problem.groups.items()))


def earlier_meaning(content: Any, history: Sequence[OuterRecord]) -> Meaning | None:
    """What the numbers of a checkpoint are; None where nothing says so.

    Args:
        content: what the checkpoint says; None in those of earlier versions.
        history: the outer steps so far, which name the numbers too.

    Raises:
        ValueError: `content` is no `Meaning`.
    """
    if content is not None:
        return from_values(Meaning, content)
    return Meaning(numbers_in(history[0])) if history else None


def numbers_in(record: OuterRecord) -> list[Learned]:
    """The learned numbers of an outer step; `init` has their values in that step."""
    return [Learned(name, len(row), size_of(row), flat(row)) for name, row in record.hyperparameters.items()]


def with_meaning(
    progress: OuterProgress, before: Meaning, now: Meaning, space: HyperparameterSpace
) -> tuple[OuterProgress, list[str]]:
    """The progress that a run with the meaning `now` goes on with, and what a person should know of it.

    Another order of the same hyperparameters is followed. A changed `step` scales the steps so far. The moments of
    another rule are forgotten. What lies outside a new bound goes to the bound.

    Args:
        before: the meaning of `progress`.
        space: that of the config now.

    Raises:
        UserError: the numbers are not those of this config; the keys are named.
    """
    if faults := list(_faults(before, now)):
        raise UserError(faults)
    places, steps = _places(before, now), {learned.name: learned.step for learned in before.learned}
    elements = [progress.state.elements[place] for place in places]
    values = [progress.values[place] for place in places]
    notes, bounded = [], []
    if before.rule and before.rule != now.rule:
        elements = [Element(element.step) for element in elements]
        notes.append("outer.optimizer has changed: it begins without the moments of the earlier one")
    for index, slot in enumerate(space.elements):
        if (step := steps[slot.owner.name]) and step != slot.owner.step:
            elements[index] = elements[index]._replace(step=elements[index].step * (slot.owner.step / step))
        if (value := slot.owner.clamp(values[index])) != values[index]:
            bounded.append(f"{slot} goes from {values[index]:.4g} to {value:.4g}")
            values[index] = value
    if bounded:
        notes.append(f"the bounds have changed: {few(bounded)}")
    best = progress.best and (progress.best[0], [progress.best[1][place] for place in places], *progress.best[2:])
    return replace(progress, values=values, state=replace(progress.state, elements=tuple(elements)), best=best), notes


def _places(before: Meaning, now: Meaning) -> list[int]:
    """[K] Where each element of λ now stands in the earlier one."""
    ends = accumulate((learned.count for learned in before.learned), initial=0)
    first = {learned.name: start for learned, start in zip(before.learned, ends, strict=False)}
    return [first[learned.name] + number for learned in now.learned for number in range(learned.count)]


def _faults(before: Meaning, now: Meaning) -> Iterator[Fault]:
    had, has = ({each.name: each for each in meaning.learned} for meaning in (before, now))
    if {name: (each.buckets, each.size) for name, each in had.items()} != {
        name: (each.buckets, each.size) for name, each in has.items()
    }:
        yield Fault("hyperparameters", f"the checkpoint holds {before}; this config {now}", "those of the checkpoint")
        return
    for name, each in has.items():
        key = f"hyperparameters.{base_of(name)}"
        for setting in ("shape", "scale"):
            earlier, later = getattr(had[name], setting), getattr(each, setting)
            if earlier and earlier != later:
                yield Fault(f"{key}.{setting}", f"{later} cannot take the place of {earlier} on resuming", earlier)
        if not all(map(_equal, had[name].init, each.init)):
            problem = f"the search did not begin with {_row(each.init)}"
            yield Fault(f"{key}.init", problem, f"{_row(had[name].init)}, as in its first outer step")
    if before.groups is not None and before.groups != now.groups:
        yield Fault("inner.groups", "cannot change when a run is resumed", f"{dict(before.groups)}, in this order")


def _equal(earlier: float, later: float) -> bool:
    return math.isclose(earlier, later, rel_tol=ROUNDING)


def _row(numbers: Sequence[float]) -> str:
    return few(f"{number:g}" for number in numbers)
