"""The steps of a reverse sweep, there and back, as one compiled call each, where they can be and are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fds_dist.common.batch import Batch, Part
from fds_dist.inner.compiled_calls import CompiledCalls
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents import Network
from fds_dist.tangents.compiled import CompiledFunction, random_like
from fds_dist.tangents.network import Buffers

PlainStep = Callable[[InnerState, Tensor, Batch], tuple[InnerState, Tensor]]
"""(state, h [H], batch) → state after the step, and the loss before it."""

PullBack = Callable[[InnerState, Tensor, Batch, list[Tensor]], tuple[list[Tensor], Tensor]]
"""(state before a step, h [H], batch, adjoints of the state after it) → adjoints of the state before it and of h."""


class SweepInputs(NamedTuple):
    """What one step there or back is a function of."""

    weights: Tensor  # [D]
    optimizer: Any  # pytree of tensors [D] or []
    buffers: Buffers
    h: Tensor  # [H]
    batch: Batch
    adjoints: list[Tensor]  # of the state after the step, on the way back


class Stepped(NamedTuple):
    """What comes of a step there."""

    weights: Tensor
    optimizer: Any
    buffers: Buffers
    loss: Tensor  # []


class Pulled(NamedTuple):
    """What comes of a step back."""

    adjoints: list[Tensor]
    by_h: Tensor  # [H]


class CompiledSweep:
    """The compiled calls of one sweep, of the eager `step` and `pull_back`, which do what cannot be compiled.

    Every rank of the run calls alike.
    """

    def __init__(self, run: InnerRun, network: Network, step: PlainStep, pull_back: PullBack) -> None:
        self._run, self._network = run, network
        self._eager_step, self._eager_pull_back = step, pull_back
        self._at = 0
        """The step of the present call: the eager functions draw its random numbers."""
        self._there = self._back = None
        if run.problem.tangents.compile != "off":
            there, back = run.problem.compiled_sweep
            self._there = self._calls(there, self._stepped, lambda inputs: inputs)
            self._back = self._calls(back, self._pulled, _with_random_adjoints)

    def step(self, state: InnerState, h: Tensor, batch: Batch) -> tuple[InnerState, Tensor]:
        """See `PlainStep`."""
        stepped: Stepped | None = self._call(self._there, state, h, batch, [])
        if stepped is None:
            return self._eager_step(state, h, batch)
        return InnerState(state.step + 1, stepped.weights, stepped.optimizer, stepped.buffers), stepped.loss

    def pull_back(
        self, state: InnerState, h: Tensor, batch: Batch, adjoints: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """See `PullBack`."""
        pulled: Pulled | None = self._call(self._back, state, h, batch, adjoints)
        return self._eager_pull_back(state, h, batch, adjoints) if pulled is None else pulled

    def _calls(
        self, compiled: CompiledFunction, function: Callable[[SweepInputs], Any], trial: Callable[[Any], Any]
    ) -> CompiledCalls:
        return CompiledCalls(self._run, compiled, self._network, function, lambda seed: function, trial)

    def _call(
        self, calls: CompiledCalls | None, state: InnerState, h: Tensor, batch: Batch, adjoints: list[Tensor]
    ) -> Any:
        """The compiled call's result; None where it is to be eager."""
        if calls is None or not calls.takes(batch):
            return None
        self._at, rank = state.step, self._run.ranks.data.rank
        _, seed = self._run.problem.step_seeds(self._run.number, state.step, rank, 0)
        cast = self._network.cast(Part(batch)).batch
        inputs = SweepInputs(state.weights, state.optimizer, state.buffers, h, cast, adjoints)
        return calls(inputs, seed) if calls.ready(lambda: inputs, seed) else None

    def _state(self, inputs: SweepInputs) -> InnerState:
        return InnerState(self._at, inputs.weights, inputs.optimizer, inputs.buffers)

    def _stepped(self, inputs: SweepInputs) -> Stepped:
        after, loss = self._eager_step(self._state(inputs), inputs.h, inputs.batch)
        return Stepped(after.weights, after.optimizer, after.buffers, loss)

    def _pulled(self, inputs: SweepInputs) -> Pulled:
        return Pulled(*self._eager_pull_back(self._state(inputs), inputs.h, inputs.batch, inputs.adjoints))


def _with_random_adjoints(inputs: SweepInputs) -> SweepInputs:
    return inputs._replace(adjoints=random_like(inputs.adjoints))
