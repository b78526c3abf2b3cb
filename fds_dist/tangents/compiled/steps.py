"""The compiled step of chunks of tangents, and of fewer where that pays.

A chunk that is not full is filled up with zeros, which cost what tangents cost. A step of just so many tangents costs
another compilation. Which is better depends on how many steps there will be; so it is made once filling up has cost as
much time as making one takes: together that is at most twice the time of the better choice. Times differ from run to
run and results must not, so such a step is taken only where it has the bits of the full chunk.

Shapes: C = tangents in a chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from fds_dist.tangents.compiled.function import StepInputs
from fds_dist.tangents.compiled.trial import first_rows, rows_are_independent, same_in_fewer
from fds_dist.tangents.compiled.ways import WAYS, CompiledFunction, WaySettings
from fds_dist.tangents.network import Network


class CompiledSteps(CompiledFunction):
    """The graphs of one kind of step, from `StepInputs` to `StepOutputs`.

    Attributes:
        chunk: C.
        smaller: steps of fewer tangents, by their number; None where such a step is not to be had.
    """

    def __init__(self, settings: WaySettings, chunk: int) -> None:
        super().__init__("step", settings)
        self.chunk, self._settings = chunk, settings
        self.smaller: dict[int, CompiledFunction | None] = {}
        self._lost: dict[int, float] = defaultdict(float)
        """Seconds that zeros have cost, by the number of tangents beside them."""

    def in_chunks_of(self, size: int) -> None:
        """Has the graphs made anew, for chunks of `size` tangents."""
        self.chunk, self.made, self.way = size, False, self._asked
        self._graphs, self._captured, self.smaller = {}, {}, {}

    def size_for(self, rows: int) -> int:
        """Tangents, zeros included, of the step that takes `rows` of them: as many, or C."""
        step = self.smaller.get(rows)
        return rows if step is not None and step.way == self.way else self.chunk

    def __call__(self, inputs: StepInputs, network: Network, seed: int) -> Any:
        """One step, of as many tangents as `size_for` says."""
        step = None if len(inputs.directions) == self.chunk else self.smaller[len(inputs.directions)]
        return super().__call__(inputs, network, seed) if step is None else step(inputs, network, seed)

    def smaller_pays(self, rows: int, seconds: float) -> bool:
        """Notes a step of `rows` tangents that took so many `seconds`; whether one of its own is to be made now."""
        if rows == self.chunk or rows in self.smaller:
            return False
        self._lost[rows] += seconds * 2 * (self.chunk - rows) / (1 + 2 * self.chunk)
        return self._lost[rows] >= self.making_seconds

    def make_smaller(
        self, rows: int, function: Callable[[Any], Any], inputs: StepInputs, network: Network, seed: int
    ) -> None:
        """Makes the step of `rows` tangents, and tries it on those of `inputs`, a full chunk without zeros."""
        step = CompiledFunction("step", self._settings._replace(way=WAYS[self.way]))
        step.make(function, partial(first_rows, inputs, rows), network, seed)
        few, full = (partial(each, network=network, seed=seed) for each in (step, super().__call__))
        is_same = step.way == self.way and same_in_fewer(few, full, inputs, rows)
        self.smaller[rows] = step if is_same else None

    def _independent(self, inputs: Callable[[], StepInputs], network: Network, seed: int) -> bool:
        """See `rows_are_independent`. On a GPU nothing is promised of last bits."""
        example = inputs()
        if example.weights.device.type != "cpu":
            return True
        return rows_are_independent(partial(self, network=network, seed=seed), example)
