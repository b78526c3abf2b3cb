"""The compiled steps of a problem: one graph for as many tangents as there are, or for a chunk filled up with zeros.

A graph for any number of tangents is taken with those numbers of them that give each row the bits of the full chunk.
On a GPU a small kernel takes the same time for one tangent and for many, and a CUDA graph has fixed shapes: there a
chunk is always full.

Shapes: C = tangents in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fds_dist.tangents.compiled.function import StepInputs
from fds_dist.tangents.compiled.trial import has_same_bits, rows_are_independent, with_tangents
from fds_dist.tangents.compiled.ways import Attempt, CompiledFunction, WaySettings


class CompiledSteps(CompiledFunction):
    """The graphs of one kind of step, from `StepInputs` to `StepOutputs`.

    Attributes:
        chunk: C.
    """

    def __init__(self, settings: WaySettings, chunk: int) -> None:
        super().__init__("step", settings)
        self.chunk = chunk
        self._sizes: dict[int, tuple[int, ...]] = {}
        """By way, in order: the numbers of tangents that a call may have, zeros included."""

    def in_chunks_of(self, size: int) -> None:
        """Has the graphs made anew, for chunks of `size` tangents."""
        self.chunk, self.made, self.way = size, False, self._asked
        self._graphs, self._captured, self._sizes = {}, {}, {}

    def size_for(self, rows: int) -> int:
        """Tangents, zeros included, of the call that takes `rows` of them, C at most."""
        return next(size for size in self._sizes.get(self.way, (self.chunk,)) if size >= rows)

    def _with_tangents(self, example: StepInputs) -> Callable[[int], StepInputs] | None:
        is_fixed = self.chunk == 1 or example.weights.device.type != "cpu"
        return None if is_fixed else partial(with_tangents, example)

    def _independent(self, attempt: Attempt) -> bool:
        """Whether a row's bits depend on no other row; finds the `_sizes`. On a GPU nothing is promised of last bits.

        The first and the last so many of C tangents, for all numbers, have each row in other places and beside others.
        """
        example, step, sizes = attempt.inputs(), self._call_of(attempt), list[int]()
        if example.weights.device.type != "cpu":
            return True
        if self._graphs[self.way].rows:
            whole = step(example)
            sizes = [n for n in range(1, self.chunk) if attempt.by_all(has_same_bits(step, whole, example, n))]
        self._sizes[self.way] = (*sizes, self.chunk)
        return len(sizes) == self.chunk - 1 or rows_are_independent(step, example)
