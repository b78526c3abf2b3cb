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
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._sizes = sorted(seconds)
        self._seconds = seconds
        self._least = [0.0]
        """By the number of tangents: the least time they take, and in `_first` the size of the first call then."""
        self._first = [0]

    def __call__(self, rows: int) -> tuple[int, ...]:
        """The sizes of the calls that take so many tangents, 0 to fill the last one up included."""
        while len(self._least) <= rows:
            self._add_row()
        fewest = fewest_calls(rows, self._sizes)
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
        of = {size: self._seconds[size] + self._least[max(0, rows - size)] for size in reversed(self._sizes)}
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
