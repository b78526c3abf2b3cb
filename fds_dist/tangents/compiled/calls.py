"""Into how many calls the tangents of a step are split: by how long calls of each size took.

A call takes the plain step with it, so few large calls do least work. But where the activations of many tangents no
longer fit into a processor's caches, two smaller calls can be faster than a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import perf_counter
from typing import Any

GAIN = 0.05
"""The share of its time that a split into more calls must save: what two timings of one call differ by."""
WEIGHT = 0.25
"""Of the last call's time in the time that its size takes: in a trial, memory is not yet as in a run."""
HOPE = 1e-4
"""The share by which, with each call, the times of all other sizes fall: so that each is tried again one day, after
another 500 calls if it was 5 % slower."""
REVIEW = 0.05
"""Seconds of calls after which splits are made anew."""


def fewest_calls(rows: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Full calls, and for what is left the smallest call that takes it.

    Args:
        rows: tangents.
        sizes: those that a call can have, in order.
    """
    full, rest = divmod(rows, sizes[-1])
    last = [next(size for size in sizes if size >= rest)] if rest else []
    return (*[sizes[-1]] * full, *last)


class FastestCalls:
    """The split of any number of tangents that takes the least time; the one with the fewest calls, unless that is
    slower by more than `GAIN`.

    Args:
        seconds: of a call, by its size.
        learns: whether times follow those of the calls that are made.
    """

    def __init__(self, seconds: Mapping[int, float], learns: bool = False) -> None:
        self._seconds, self._learns = dict(sorted(seconds.items())), learns
        self._forget()

    def __call__(self, rows: int) -> tuple[int, ...]:
        """The sizes of the calls that take so many tangents, 0 to fill the last one up included."""
        if rows not in self._splits:
            self._splits[rows] = self._split(rows)
        return self._splits[rows]

    def took(self, size: int, seconds: float) -> None:
        """A call of `size` tangents took so long."""
        if not self._learns:
            return
        for other in self._seconds:
            self._seconds[other] *= 1 - HOPE
        self._seconds[size] += WEIGHT * (seconds - self._seconds[size])
        self._since += seconds
        if self._since >= REVIEW:
            self._forget()

    def _forget(self) -> None:
        self._since = 0.0
        self._splits: dict[int, tuple[int, ...]] = {}
        self._least = [0.0]
        """By the number of tangents: the least time they take, and in `_first` the size of the first call then."""
        self._first = [0]

    def _split(self, rows: int) -> tuple[int, ...]:
        while len(self._least) <= rows:
            self._add_row()
        fewest = fewest_calls(rows, list(self._seconds))
        if self._least[rows] >= (1 - GAIN) * sum(self._seconds[size] for size in fewest):
            return fewest
        calls = list[int]()
        while rows > 0:
            calls.append(self._first[rows])
            rows -= calls[-1]
        return tuple(calls)

    def _add_row(self) -> None:
        """The best split of one tangent more: its first call, and the best split of the others."""
        rows = len(self._least)
        of = {size: self._seconds[size] + self._least[max(0, rows - size)] for size in reversed(self._seconds)}
        self._first.append(min(of, key=lambda size: of[size]))
        self._least.append(of[self._first[-1]])


class Timed:
    """A step that notes the least time its calls took.

    Attributes:
        seconds: by the number of tangents.
    """

    def __init__(self, step: Callable[[Any], Any]) -> None:
        self._step = step
        self.seconds = dict[int, float]()

    def __call__(self, inputs: Any) -> Any:
        began = perf_counter()
        outputs = self._step(inputs)
        rows, taken = len(inputs.directions), perf_counter() - began
        self.seconds[rows] = min(taken, self.seconds.get(rows, inf))
        return outputs
