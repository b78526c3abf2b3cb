"""What the steps of a problem are compiled to, for all of its inner runs: made once, believed only where it is right.

Steps on batches of one shape, that of the task's first batch, are compiled; others run eagerly. What is compiled thus
depends on the config alone, not on what a run has met: a resumed run computes what the uninterrupted one would have.

Shapes: C = tangents in a chunk.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten

from fds_dist.common.batch import PLAIN, Batch
from fds_dist.tangents.compiled.capture import Captured
from fds_dist.tangents.compiled.function import StepFunction, StepInputs, StepOutputs
from fds_dist.tangents.compiled.graph import Graph, compiled, trace
from fds_dist.tangents.compiled.trial import difference, rows_are_independent
from fds_dist.tangents.network import Network
from fds_dist.tangents.point import PointMaker

WAYS = ("off", "trace", "inductor")
"""How a step is taken: eagerly, as one graph of elementary operators, or as that graph compiled."""


class CompiledSteps:
    """The graphs of one kind of step.

    Attributes:
        way: the place in `WAYS` of how steps are taken now.
        chunk: C.
        capture: whether the steps are captured as CUDA graphs.
        made: whether there are graphs.
    """

    def __init__(self, way: str, chunk: int, first_batch: Batch, capture: bool = False, coarse: bool = False) -> None:
        self.way = self._asked = WAYS.index(way)
        self.chunk, self.made = chunk, False
        self._shape = shape_of(first_batch)
        self.capture, self._coarse = capture, coarse
        self._graphs: dict[int, Graph] = {}
        self._captured: dict[int, Graph] = {}

    def takes(self, batch: Batch) -> bool:
        """Whether steps on this batch are compiled."""
        return self.way > 0 and self._shape is not None and shape_of(batch) == self._shape

    def make(self, function: StepFunction, inputs: StepInputs, seed: int) -> tuple[bool, str]:
        """Traces, and compiles, the step from `inputs`; sets `way` to how far that goes.

        Returns:
            Whether the rows of the chunk are independent, and why `way` is not what it was, or "".
        """
        self.way, self.made = 0, True
        network = function.loss.network
        try:
            self._graphs[1] = trace(function, inputs, network.module)
            self.way = 1
            independent = self._independent(function, inputs, seed)
            if independent and self._asked > 1:
                self._graphs[2] = compiled(self._graphs[1], inputs, network.module)
                self.way = 2
                independent = self._independent(function, inputs, seed)
        except Exception as error:  # whatever the user's network, PyTorch's tracer or a compiler raises
            verb = "compiled" if self.way else "traced"
            return True, f"the step cannot be {verb} ({type(error).__name__}: {_first_line(error)})"
        return independent, ""

    def one_at_a_time(self) -> None:
        """Has the graphs made anew, for chunks of one tangent."""
        self.chunk, self.made, self.way = 1, False, self._asked
        self._graphs, self._captured = {}, {}

    def compare(self, function: StepFunction, make_point: PointMaker, inputs: StepInputs, seed: int) -> str:
        """Compares the step with the eager one by `make_point`; steps back in `WAYS` until they agree.

        Returns:
            What disagreed, or what could not be captured; "" where nothing did.
        """
        network, reason = function.loss.network, ""
        while self.way:
            reason = self._captures(inputs, network) or reason
            eager = replace(function, vectorize=False)
            if not self._graphs[self.way].draws:  # the methods place random masks differently
                eager = replace(eager, make_point=make_point)
            reference = partial(eager, seed=seed)
            wrong = difference(partial(self, network=network, seed=seed), reference, inputs, self._coarse)
            if not wrong:
                break
            reason = f"the step by {WAYS[self.way]} is not right: {wrong}"
            self.way -= 1
        return reason

    def __call__(self, inputs: StepInputs, network: Network, seed: int) -> StepOutputs:
        """One step from `inputs`, with the random numbers of `seed`."""
        network.seed(seed)
        graph = self._captured[self.way] if self.capture and self.way in self._captured else self._graphs[self.way]
        return graph(inputs, network.module)

    def _independent(self, function: StepFunction, inputs: StepInputs, seed: int) -> bool:
        """See `rows_are_independent`. On a GPU nothing is promised of last bits."""
        if inputs.weights.device.type != "cpu":
            return True
        return rows_are_independent(partial(self, network=function.loss.network, seed=seed), inputs)

    def _captures(self, inputs: StepInputs, network: Network) -> str:
        """Captures the present way's step, where that is wanted and not done; why it cannot be, or ""."""
        if not self.capture or self.way in self._captured:
            return ""
        graph = self._graphs[self.way]
        try:
            captured = Captured(graph.run, graph.tensors(inputs, network.module))
        except Exception as error:  # whatever the kernels of the user's network do that a capture forbids
            self.capture = False
            return f"the step cannot be captured as a CUDA graph ({type(error).__name__}: {_first_line(error)})"
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
