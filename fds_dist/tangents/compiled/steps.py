"""The compiled steps of a problem: one graph for as many tangents as there are, or for a chunk filled up with zeros.

A graph for any number of tangents is taken with those numbers of them that give each row the bits of the full chunk,
and among these with the fastest. On a GPU a small kernel takes the same time for one tangent and for many, and a CUDA
graph has fixed shapes: there a chunk is always full.

Shapes: C = tangents in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

from fds_dist.tangents.compiled.calls import FastestCalls, Timed, fewest_calls
from fds_dist.tangents.compiled.function import StepInputs, StepOutputs
from fds_dist.tangents.compiled.trial import has_same_bits, rows_are_independent, with_tangents
from fds_dist.tangents.compiled.ways import Attempt, CompiledFunction, WaySettings
from fds_dist.tangents.network import Network

TIMED_AGAIN = 4
"""How often calls of all sizes are timed again, in turns, where that takes no longer than `SHORT` each time."""
SHORT = 0.5
"""Seconds."""


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
        self._calls: dict[int, FastestCalls] = {}
        """By way, where it was timed."""

    def in_chunks_of(self, size: int) -> None:
        """Has the graphs made anew, for chunks of `size` tangents."""
        self.chunk, self.made, self.way = size, False, self._asked
        self._graphs, self._captured, self._sizes, self._calls = {}, {}, {}, {}

    def calls_for(self, rows: int) -> tuple[int, ...]:
        """The calls that take `rows` tangents: how many each has, zeros included."""
        sizes = self._sizes.get(self.way, (self.chunk,))
        calls = self._calls.get(self.way)
        return fewest_calls(rows, sizes) if calls is None else calls(rows)

    def __call__(self, inputs: StepInputs, network: Network, seed: int) -> StepOutputs:
        began = perf_counter()
        outputs: StepOutputs = super().__call__(inputs, network, seed)
        if calls := self._calls.get(self.way):
            calls.took(len(inputs.directions), perf_counter() - began)
        return outputs

    def _with_tangents(self, example: StepInputs) -> Callable[[int], StepInputs] | None:
        is_fixed = self.chunk == 1 or example.weights.device.type != "cpu"
        return None if is_fixed else partial(with_tangents, example)

    def _independent(self, attempt: Attempt) -> bool:
        """Whether a row's bits depend on no other row; finds the `_sizes`. On a GPU nothing is promised of last bits.

        The first and the last so many of C tangents, for all numbers, have each row in other places and beside others.
        """
        example, sizes, step = attempt.inputs(), list[int](), Timed(self._call_of(attempt))
        if example.weights.device.type != "cpu":
            return True
        if self._graphs[self.way].rows:
            whole = step(example)
            sizes = [n for n in range(1, self.chunk) if attempt.by_all(has_same_bits(step, whole, example, n))]
        self._sizes[self.way] = (*sizes, self.chunk)
        self._calls.pop(self.way, None)
        if sizes:
            # Ranks that make each call together must split tangents alike, whatever each of them sees.
            self._calls[self.way] = FastestCalls(self._timed(step, example, attempt), learns=attempt.together is None)
        return len(sizes) == self.chunk - 1 or rows_are_independent(step, example)

    def _timed(self, step: Timed, example: StepInputs, attempt: Attempt) -> dict[int, float]:
        """Seconds of a call by its size, of those that can be taken: the same on all ranks that make it together."""
        sizes = self._sizes[self.way]

        def seconds() -> list[float]:
            return attempt.longest([step.seconds[size] for size in sizes])

        step(example)  # the full one, which others were compared with before they were tried twice each
        for _ in range(TIMED_AGAIN):
            if sum(seconds()) < SHORT:
                for size in sizes:
                    step(with_tangents(example, size))
        return dict(zip(sizes, seconds(), strict=True))
