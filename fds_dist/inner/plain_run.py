"""One plain inner run: training without tangents, then the loss. Black boxes and judges use it.

The ranks of the `data` axis share the run, as they share the inner run of an outer step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import Evaluation, evaluate
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.monitor import BLOCKS_PER_HORIZON
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import ALONE, InnerRun, InnerState
from fds_dist.inner.training import judged_state
from fds_dist.tangents import Network

Answer = TypeVar("Answer")

AtRung = Callable[[float | None], bool]
"""(validation loss at this rung, None if the run ended before it) → whether the run continues."""


@dataclass(frozen=True)
class Score:
    """Means over all samples of a data set."""

    loss: float
    """Infinite in place of a NaN too."""
    accuracy: float | None
    """None if the targets are not class indices."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Score:
        """The score of an evaluation."""
        return cls(evaluation.loss if math.isfinite(evaluation.loss) else math.inf, evaluation.accuracy)


@dataclass(frozen=True)
class Outcome:
    """How a plain run ended."""

    val: Score
    test: Score | None
    """None if no test was asked for, or if the task has no test data."""
    steps: int
    """Fewer than the horizon if the run diverged or was pruned."""
    seconds: float
    """Without the time spent waiting for other ranks."""


class _Watch:
    """The `OnStep` of a plain run: validates at each rung, and ends the run if its weights are not finite."""

    def __init__(
        self,
        validate_at: Callable[[InnerState], Score],
        run: InnerRun,
        rungs: Sequence[int],
        at_rung: AtRung,
        on_block: Callable[[], None],
    ) -> None:
        self._validate_at, self._axis = validate_at, run.ranks.data
        self._every = -(-run.horizon // BLOCKS_PER_HORIZON)
        self._rungs, self._at_rung, self._on_block = list(rungs), at_rung, on_block
        self.waited = 0.0
        self.last: Score | None = None

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        if state.step % self._every == 0:
            self._timed(self._on_block)
            if self._diverged(state, loss):
                self.last = None
                return False
        if self._rungs and state.step == self._rungs[0]:
            self.last = self._validate_at(state)
            return self._ask(self.last.loss)
        return True

    def _diverged(self, state: InnerState, loss: Tensor) -> bool:
        """Alike on all ranks of the run: the sum of their parts of the loss decides, and the weights are whole."""
        return not math.isfinite(self._axis.sum(loss).item()) and not bool(torch.isfinite(state.weights).all())

    def answer_remaining(self) -> None:
        """Answers the remaining rungs of a run that ended early, so that other ranks do not wait."""
        while self._rungs:
            self._ask(None)

    def _ask(self, value: float | None) -> bool:
        self._rungs.pop(0)
        return self._timed(lambda: self._at_rung(value))

    def _timed(self, call: Callable[[], Answer]) -> Answer:
        """The answer of a call that waits for other ranks; its time does not count as the run's."""
        began = time.perf_counter()
        answer = call()
        self.waited += time.perf_counter() - began
        return answer


def blocks_of(horizon: int) -> int:
    """How often `plain_run` calls `on_block` in a run that does not end early."""
    return horizon // -(-horizon // BLOCKS_PER_HORIZON)


def plain_run(
    problem: Problem,
    values: Sequence[float],
    number: int,
    horizon: int,
    rungs: Sequence[int] = (),
    at_rung: AtRung = lambda value: True,
    test: bool = False,
    ranks: Ranks = ALONE,
    on_block: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains for `horizon` steps with λ = `values` [K] on the weights, split and batches of outer step `number`.

    Args:
        rungs: steps before the horizon, ascending, at which the run is validated and `at_rung` decides.
        test: whether to evaluate on the test data too.
        ranks: those of this rank's `data` axis share the run, and call this alike.
        on_block: called after each hundredth of the horizon or so; see `blocks_of`.
    """
    began = time.perf_counter()
    # A second network: a validation within the run must not change the mode of the one in training.
    network, axis = problem.network(number), ranks.data
    run = InnerRun(problem.by("plain"), values, number, horizon, ranks)

    def score(state: InnerState) -> Score:
        return validation_score(problem, network, state, number, axis)

    watch = _Watch(lambda state: score(judged_state(problem, network, state, axis)), run, rungs, at_rung, on_block)
    training, _ = run_horizon(replace(run, on_step=watch))
    watch.answer_remaining()
    state, on_test = training.judged_state, None
    if state.step == horizon:
        val = score(state)
        on_test = test_score(problem, network, state, axis) if test else None
    else:
        val = watch.last or Score(math.inf, None)
    seconds = time.perf_counter() - began - watch.waited
    return Outcome(val, on_test, state.step, seconds)


def validation_score(problem: Problem, network: Network, state: InnerState, number: int, axis: DataAxis) -> Score:
    """The validation loss, as the gradient methods see it, without its gradient."""
    batches = problem.batches_of("val_batches", number)
    evaluation = evaluate(problem, network, state, batches, problem.val_batch_norm, axis)
    return Score(math.inf, None) if evaluation is None else Score.of(evaluation)


def test_score(problem: Problem, network: Network, state: InnerState, axis: DataAxis) -> Score | None:
    """The score on the test data, with running statistics in batch-norm; None without test data."""
    evaluation = evaluate(problem, network, state, problem.batches_of("test_batches"), "running", axis)
    return None if evaluation is None else Score.of(evaluation)
