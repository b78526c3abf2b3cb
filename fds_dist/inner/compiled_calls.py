"""A compiled function in one inner run: made where it is not yet, and compared with the eager one at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fds_dist.common.batch import Batch
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.compiled import WAYS, Attempt, CompiledFunction, CompiledSteps
from fds_dist.tangents.network import Network

COMPARED = 2
"""Calls, the first ones on a compiled shape, that are compared with the eager ones: as many as three steps each."""


class CompiledCalls:
    """The calls of one inner run. Every rank of the run calls `ready` alike.

    Args:
        function: what is compiled, of named tuples.
        reference: gives the eager function that it is compared with; it gets the seed of the random numbers.
        trial: the arguments of a call → others to compare at, which leave nothing out.
    """

    def __init__(
        self,
        run: InnerRun,
        compiled: CompiledFunction,
        network: Network,
        function: Callable[[Any], Any],
        reference: Callable[[int], Callable[[Any], Any]],
        trial: Callable[[Any], Any],
    ) -> None:
        self._run, self._compiled, self._network = run, compiled, network
        self._function, self._reference, self._trial = function, reference, trial
        # Ranks of the `data` axis make each call together.
        self._together = None if run.ranks.data.size == 1 else partial(self._least, "data")

    def takes(self, batch: Batch) -> bool:
        """Whether calls on this batch can be compiled."""
        return self._compiled.takes(batch)

    def ready(self, inputs: Callable[[], Any], seed: int) -> bool:
        """Whether the next call is to be compiled, where its batch can be; `inputs` gives its arguments."""
        if self._compiled.compared < COMPARED:
            self._compiled.compared += 1
            self._prepare(inputs, seed)
        return self._compiled.way > 0

    def __call__(self, inputs: Any, seed: int) -> Any:
        """The function's result, with the random numbers of `seed`."""
        return self._compiled(inputs, self._network, seed)

    def _prepare(self, inputs: Callable[[], Any], seed: int) -> None:
        """Makes the graphs where there are none, and compares them with the eager function; the ranks agree."""
        compiled, again = self._compiled, True
        attempt = Attempt(lambda: self._trial(inputs()), self._network, seed, self._together)
        while again:
            if not compiled.made:
                self._agreed(True, compiled.make(self._function, attempt))
            again = not compiled.made
            if compiled.made and compiled.way:
                again = self._agreed(*compiled.compare(self._reference(seed), attempt))

    def _least(self, axis: str, numbers: Sequence[float]) -> list[float]:
        """Of each number, over the ranks of an axis."""
        return [min(column) for column in zip(*self._run.ranks.gather_numbers(axis, numbers), strict=True)]

    def _agreed(self, independent: bool, reason: str) -> bool:
        """Takes the furthest way that all ranks can go; whether some of them have to try that yet, or all begin anew,
        with smaller chunks."""
        compiled = self._compiled
        here = [float(compiled.way), -float(compiled.way), float(independent), float(not compiled.lack)]
        way, furthest, all_independent, enough_memory = self._least("tangent", self._least("data", here))
        if isinstance(compiled, CompiledSteps) and compiled.chunk > 1:
            on_cpu = self._run.problem.device.type == "cpu"
            if not enough_memory:
                size, lack = compiled.chunk, compiled.lack or "another rank is out of memory"
                compiled.in_chunks_of(size // 2)
                self._note(f"tangents are taken {compiled.chunk} at a time: {lack} with {size}")
                return True
            if not all_independent and on_cpu:
                self._note(reason)
                compiled.in_chunks_of(1)
                self._note("tangents are taken one at a time, as their bits depend on their neighbours'")
                return True
        is_held_back, compiled.way = way < compiled.way, int(way)
        self._note(reason)
        if is_held_back and not reason:
            self._note(f"another rank cannot take its {compiled.name}s as this one does")
        return way < -furthest

    def _note(self, reason: str) -> None:
        if reason:
            way, name = WAYS[self._compiled.way], self._compiled.name
            self._run.note(f"{reason}; {name}s are taken " + ("eagerly" if way == "off" else f"by {way}"))
