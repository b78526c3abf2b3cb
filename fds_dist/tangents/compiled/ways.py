"""How a function of tensors is run for all inner runs of a problem: compiled once, believed only where it is right.

Calls on batches of one shape, that of the task's first batch, are compiled; others run eagerly. What is compiled thus
depends on the config alone, not on what a run has met: a resumed run computes what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten

from fds_dist.common.batch import PLAIN, Batch
from fds_dist.common.out_of_memory import is_out_of_memory, request_of
from fds_dist.distributed.exchanges import rehearsed
from fds_dist.tangents.compiled.capture import Captured
from fds_dist.tangents.compiled.graph import Graph, compiled, trace
from fds_dist.tangents.compiled.trial import difference
from fds_dist.tangents.network import Network

WAYS = ("off", "trace", "inductor")
"""How a function is run: eagerly, as one graph of elementary operators, or as that graph compiled."""


Together = Callable[[Sequence[float]], list[float]]
"""Numbers of this rank → of each the least of all ranks that make calls with this one, sending each other tensors in
the midst of them. All of these call it alike."""


class WaySettings(NamedTuple):
    """How the functions of a problem are run."""

    way: str
    """Of `WAYS`."""
    first_batch: Batch
    """Calls on batches of its shape are compiled."""
    capture: bool = False
    """Whether they are captured as CUDA graphs."""
    coarse: bool = False
    """Whether products round to fewer bits than the tensors have."""


class Attempt(NamedTuple):
    """What a function is made and compared with."""

    inputs: Callable[[], Any]
    """Makes the arguments of a call."""
    network: Network
    seed: int
    """Of the random numbers."""
    together: Together | None = None
    """None: this process makes calls alone."""

    def by_all(self, here: bool) -> bool:
        """Whether it holds on all ranks that make calls together."""
        return here if self.together is None else self.together([float(here)]) == [1.0]

    def longest(self, seconds: Sequence[float]) -> list[float]:
        """The longest of each of these on any of these ranks."""
        return list(seconds) if self.together is None else [-least for least in self.together([-s for s in seconds])]


class CompiledFunction:
    """The graphs of one function of a named tuple with `weights`, whose result is a named tuple, too.

    Attributes:
        name: what the function is called in remarks.
        way: the place in `WAYS` of how it is run now.
        capture: whether it is captured as a CUDA graph.
        made: whether there are graphs.
        compared: how many calls were compared with eager ones.
        lack: what memory was lacking at the last attempt to make or to compare them; "" where none was.
    """

    def __init__(self, name: str, settings: WaySettings) -> None:
        way, first_batch, self.capture, self._coarse = settings
        self.name = name
        self.way = self._asked = WAYS.index(way)
        self.made, self.compared, self.lack = False, 0, ""
        self._shape = shape_of(first_batch)
        self._graphs: dict[int, Graph] = {}
        self._captured: dict[int, Graph] = {}
        self._tried: set[int] = set()
        """Ways that were right once, and of which it was tried whether rows are independent."""

    def takes(self, batch: Batch) -> bool:
        """Whether calls on this batch are compiled."""
        return self.way > 0 and self._shape is not None and shape_of(batch) == self._shape

    @property
    def graph(self) -> Graph:
        """The traced graph, of functions that are `made` and could be traced."""
        return self._graphs[1]

    def make(self, function: Callable[[Any], Any], attempt: Attempt) -> str:
        """Traces, and compiles, `function`; sets `way` to how far that goes.

        Returns:
            Why `way` is not what it was, or "".
        """
        self.way, self.made, self.lack = 0, True, ""
        self._tried, reason = set(), ""
        while self.way < self._asked and not reason:
            reason = self._make_next(function, attempt)
        return reason

    def _make_next(self, function: Callable[[Any], Any], attempt: Attempt) -> str:
        """Makes the graph of the next way, and takes it where the others could, too; why not, or ""."""
        reason, verb = "", "compiled" if self.way else "traced"
        try:
            example, module = attempt.inputs(), attempt.network.module
            graph = compiled(self._graphs[1], example, module) if self.way else self._trace(function, example, module)
            attempt.network.seed(attempt.seed)
            with rehearsed():
                graph(example, module)  # some faults of a compiler show only here
            self._graphs[self.way + 1] = graph
        except Exception as error:  # whatever the user's network, PyTorch's tracer or a compiler raises
            reason = self._cannot_be(verb, error)
        if not attempt.by_all(not reason):
            reason = reason or f"on another rank the {self.name} cannot be {verb}"
        self.way += not reason
        return reason

    def _trace(self, function: Callable[[Any], Any], example: Any, module: nn.Module) -> Graph:
        return trace(function, example, module, self._with_tangents(example))

    def _with_tangents(self, example: Any) -> Callable[[int], Any] | None:
        """See `trace`."""
        return None

    def _lack_for(self, trial: Callable[[], Any], attempt: Attempt) -> str:
        """Why not all ranks have memory for `trial`, which makes calls together with them, or "".

        Each rank makes the calls alone first: one that runs out in the midst of a call together would leave the others
        waiting. A process alone simply tries.
        """
        if attempt.together is None:
            return ""
        self.lack = ""
        try:
            with rehearsed():
                trial()
        except Exception as error:
            if is_out_of_memory(error):  # another error may come of numbers that are not the other ranks'
                self.lack = request_of(error)
        if attempt.by_all(not self.lack):
            return ""
        return self._short_of_memory() if self.lack else "another rank is out of memory"

    def _short_of_memory(self) -> str:
        return f"the {self.name} beside the eager one is {self.lack}"

    def _cannot_be(self, verb: str, error: Exception) -> str:
        self.lack = request_of(error) if is_out_of_memory(error) else ""
        return f"the {self.name} cannot be {verb} ({type(error).__name__}: {_first_line(error)})"

    def compare(self, reference: Callable[[Any], Any], attempt: Attempt) -> tuple[bool, str]:
        """Compares a call with that of `reference`, the eager function; steps back in `WAYS` until they agree.

        Returns:
            Whether rows are independent, tried once of each way that is right; and what disagreed, what could not be
            captured or what memory was lacking, or "".
        """
        try:
            return self._compared(reference, attempt)
        except Exception as error:
            if attempt.together is not None or not is_out_of_memory(error):
                raise
            self.way, self.lack = 0, request_of(error)
            return True, self._short_of_memory()

    def _compared(self, reference: Callable[[Any], Any], attempt: Attempt) -> tuple[bool, str]:
        """See `compare`."""
        reason, independent = "", True

        def alone() -> None:
            """All calls of the first comparison: those of others of its shape need as much memory."""
            self._fault(reference, attempt)
            self._independent(attempt._replace(together=None))

        while self.way:
            reason = self._captures(attempt) or reason
            is_new = self.way not in self._tried
            if is_new and (lack := self._lack_for(alone, attempt)):
                self.way = 0
                return True, lack
            fault = self._fault(reference, attempt)
            if not attempt.by_all(not fault):
                fault = fault or "another rank's is not"
            elif is_new:
                independent, fault = self._rows(attempt)
                self._tried.add(self.way)
            if not fault:
                break
            reason = f"the {self.name} by {WAYS[self.way]} is not right: {fault}"
            self.way -= 1
        return independent, reason

    def _fault(self, reference: Callable[[Any], Any], attempt: Attempt) -> str:
        return difference(self._call_of(attempt), reference, attempt.inputs(), self._coarse)

    def _rows(self, attempt: Attempt) -> tuple[bool, str]:
        """Whether rows are independent on all ranks, and why calls with fewer rows fail, or ""."""
        try:
            return attempt.by_all(self._independent(attempt)), ""
        except Exception as error:  # of a compiler's code for another number of rows
            if attempt.together is not None or is_out_of_memory(error):  # the others are in the midst of a call
                raise
            return True, f"other numbers of tangents fail ({type(error).__name__}: {_first_line(error)})"

    def _call_of(self, attempt: Attempt) -> Callable[[Any], Any]:
        """A call as a function of its arguments alone."""
        return partial(self, network=attempt.network, seed=attempt.seed)

    def __call__(self, inputs: Any, network: Network, seed: int) -> Any:
        """One call, with the random numbers of `seed`."""
        network.seed(seed)
        graph = self._captured[self.way] if self.capture and self.way in self._captured else self._graphs[self.way]
        return graph(inputs, network.module)

    def _independent(self, attempt: Attempt) -> bool:
        """Whether rows of the inputs are independent, as far as there are any."""
        return True

    def _captures(self, attempt: Attempt) -> str:
        """Captures the present way's step, where that is wanted and not done; why it cannot be, or ""."""
        if not self.capture or self.way in self._captured:
            return ""
        graph = self._graphs[self.way]
        try:
            captured = Captured(graph.run, graph.tensors(attempt.inputs(), attempt.network.module))
        except Exception as error:  # whatever the kernels of the user's network do that a capture forbids
            self.capture = False
            return f"the {self.name} cannot be captured as a CUDA graph ({type(error).__name__}: {_first_line(error)})"
        self._captured[self.way] = replace(graph, run=captured)
        return ""


def shape_of(batch: Batch) -> tuple[TreeSpec, tuple[Any, ...]] | None:
    """What a compiled step is made for: shapes and types of the tensors in a batch, and its other values.

    None where it holds what is neither.
    """
    leaves, spec = tree_flatten(batch)
    if not all(isinstance(leaf, (torch.Tensor, *PLAIN)) for leaf in leaves):
        return None
    kinds = [(leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return spec, tuple(kinds)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
