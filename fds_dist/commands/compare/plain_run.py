"""One plain inner run: training without tangents, then the loss. Black boxes and judges use it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fds_dist.inner.estimate import Evaluation, evaluate
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.monitor import BLOCKS_PER_HORIZON
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents import Network

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
        self, validate_at: Callable[[InnerState], Score], horizon: int, rungs: Sequence[int], at_rung: AtRung
    ) -> None:
        self._validate_at = validate_at
        self._every = -(-horizon // BLOCKS_PER_HORIZON)
        self._rungs, self._at_rung = list(rungs), at_rung
        self.waited = 0.0
        self.last: Score | None = None

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        if state.step % self._every == 0 and self._diverged(state, loss):
            self.last = None
            return False
        if self._rungs and state.step == self._rungs[0]:
            self.last = self._validate_at(state)
            return self._ask(self.last.loss)
        return True

    @staticmethod
    def _diverged(state: InnerState, loss: Tensor) -> bool:
        return not math.isfinite(loss.item()) and not bool(torch.isfinite(state.weights).all())

    def answer_remaining(self) -> None:
        """Answers the remaining rungs of a run that ended early, so that other ranks do not wait."""
        while self._rungs:
            self._ask(None)

    def _ask(self, value: float | None) -> bool:
        self._rungs.pop(0)
        began = time.perf_counter()
        continues = self._at_rung(value)
        self.waited += time.perf_counter() - began
        return continues


def plain_run(
    problem: Problem,
    values: Sequence[float],
    number: int,
    horizon: int,
    rungs: Sequence[int] = (),
    at_rung: AtRung = lambda value: True,
    test: bool = False,
) -> Outcome:
    """Trains for `horizon` steps with λ = `values` [K] on the weights, split and batches of outer step `number`.

    Args:
        rungs: steps before the horizon, ascending, at which the run is validated and `at_rung` decides.
        test: whether to evaluate on the test data too.
    """
    began = time.perf_counter()
    # A second network: a validation within the run must not change the mode of the one in training.
    network = problem.network(number)
    watch = _Watch(lambda state: validation_score(problem, network, state, number), horizon, rungs, at_rung)
    training, _ = run_horizon(InnerRun(problem.by("plain"), values, number, horizon, on_step=watch))
    watch.answer_remaining()
    state, on_test = training.state, None
    if state.step == horizon:
        val = validation_score(problem, network, state, number)
        on_test = test_score(problem, network, state) if test else None
    else:
        val = watch.last or Score(math.inf, None)
    seconds = time.perf_counter() - began - watch.waited
    return Outcome(val, on_test, state.step, seconds)


def validation_score(problem: Problem, network: Network, state: InnerState, number: int) -> Score:
    """The validation loss, as the gradient methods see it, without its gradient."""
    batches = problem.batches_of("val_batches", number)
    evaluation = evaluate(problem, network, state, batches, problem.val_batch_norm)
    return Score(math.inf, None) if evaluation is None else Score.of(evaluation)


def test_score(problem: Problem, network: Network, state: InnerState) -> Score | None:
    """The score on the test data, with running statistics in batch-norm; None without test data."""
    evaluation = evaluate(problem, network, state, problem.batches_of("test_batches"), "running")
    return None if evaluation is None else Score.of(evaluation)
