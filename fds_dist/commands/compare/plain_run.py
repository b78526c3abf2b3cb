"""One plain inner run: training without tangents, then the loss. What black boxes try and judges repeat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fds_dist.inner.estimate import Evaluation, checked_batches, evaluate
from fds_dist.inner.monitor import BLOCKS_PER_HORIZON
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState, run_horizon
from fds_dist.tangents import Network

AtRung = Callable[[float | None], bool]
"""(validation loss at this rung, None where the run ended before it) → whether to go on."""


@dataclass(frozen=True)
class Score:
    """The mean over all samples of some batches."""

    loss: float
    """Infinite where it is not finite."""
    accuracy: float | None
    """None where targets are no class indices."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Score:
        """The score of an evaluation."""
        return cls(evaluation.loss if math.isfinite(evaluation.loss) else math.inf, evaluation.accuracy)


@dataclass(frozen=True)
class Outcome:
    """How a plain run ended."""

    val: Score
    test: Score | None
    """None where it was not asked for, or the task has no test data."""
    steps: int
    """Fewer than the horizon where the run diverged or was pruned."""
    seconds: float
    """Without waiting for other ranks."""


class _Watch:
    """The `OnStep` of a plain run: validates at each rung, and ends a run whose weights are not finite."""

    def __init__(
        self, validate_at: Callable[[InnerState], Score], horizon: int, rungs: Sequence[int], at_rung: AtRung
    ) -> None:
        self._validate_at = validate_at
        self._every = -(-horizon // BLOCKS_PER_HORIZON)
        self._rungs, self._at_rung = list(rungs), at_rung
        self.waited = 0.0
        self.last: Score | None = None

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        if state.step % self._every == 0 and self._is_lost(state, loss):
            self.last = None
            return False
        if self._rungs and state.step == self._rungs[0]:
            self.last = self._validate_at(state)
            return self._ask(self.last.loss)
        return True

    @staticmethod
    def _is_lost(state: InnerState, loss: Tensor) -> bool:
        return not math.isfinite(loss.item()) and not bool(torch.isfinite(state.weights).all())

    def answer_remaining(self) -> None:
        """Answers the remaining rungs of a run that ended early, so that other ranks do not wait."""
        while self._rungs:
            self._ask(None)

    def _ask(self, value: float | None) -> bool:
        self._rungs.pop(0)
        began = time.perf_counter()
        goes_on = self._at_rung(value)
        self.waited += time.perf_counter() - began
        return goes_on


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
        test: whether to evaluate on the test data too, with running statistics in batch-norm.
    """
    began = time.perf_counter()
    network = problem.network(number)  # of its own: a validation within the run must not change its mode
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
    """The validation loss that the gradient methods see too, without its gradient."""
    batches = checked_batches(problem.task, "val_batches", number)
    evaluation = evaluate(problem, network, state, batches, problem.val_batch_norm)
    return Score(math.inf, None) if evaluation is None else Score.of(evaluation)


def test_score(problem: Problem, network: Network, state: InnerState) -> Score | None:
    """On the test data, with running statistics in batch-norm; None where there is none."""
    evaluation = evaluate(problem, network, state, checked_batches(problem.task, "test_batches"), "running")
    return None if evaluation is None else Score.of(evaluation)
