"""The compiled step of chunks of tangents.

Shapes: C = tangents in a chunk.
"""

from __future__ import annotations

from functools import partial

from fds_dist.tangents.compiled.function import StepInputs
from fds_dist.tangents.compiled.trial import rows_are_independent
from fds_dist.tangents.compiled.ways import CompiledFunction, WaySettings
from fds_dist.tangents.network import Network


class CompiledSteps(CompiledFunction):
    """The graphs of one kind of step, from `StepInputs` to `StepOutputs`.

    Attributes:
        chunk: C.
    """

    def __init__(self, settings: WaySettings, chunk: int) -> None:
        super().__init__("step", settings)
        self.chunk = chunk

    def one_at_a_time(self) -> None:
        """Has the graphs made anew, for chunks of one tangent."""
        self.chunk, self.made, self.way = 1, False, self._asked
        self._graphs, self._captured = {}, {}

    def _independent(self, inputs: StepInputs, network: Network, seed: int) -> bool:
        """See `rows_are_independent`. On a GPU nothing is promised of last bits."""
        if inputs.weights.device.type != "cpu":
            return True
        return rows_are_independent(partial(self, network=network, seed=seed), inputs)
