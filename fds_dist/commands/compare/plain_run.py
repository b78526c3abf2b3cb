"""One plain inner run: training without tangents, then the loss. What black boxes try and judges repeat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fds_dist.common.batch import checked_batch
from fds_dist.inner.estimate import right_answers
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerState, run_horizon
from fds_dist.tangents import Batch, Network, PointMaker, TrainingLoss, differentiate
from fds_dist.tangents.batch_norm import Statistics
from fds_dist.tasks.base import validation_loss

BLOCKS_PER_HORIZON = 100

AtRung = Callable[[float | None], bool]
"""(validation loss at this rung, None where the run ended before it) → whether to go on."""


@dataclass(frozen=True)
class Score:
    """The mean over all samples of some batches."""

    loss: float
    """Infinite where it is not finite."""
    accuracy: float | None
    """None where targets are no class indices."""


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


class PlainPoint:
    """The training loss at one point, when nobody asks for products: no second graph, no zero tangents."""

    def __init__(
        self, loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch, seed: int, vectorize: bool
    ) -> None:
        loss.network.seed(seed)
        leaf = weights.detach().requires_grad_()
        value, statistics = loss(leaf, theta, batch)
        self.gradient: Tensor = differentiate(value, leaf)[0]
        self.loss: Tensor = value.detach()
        self.statistics: Statistics = statistics

    def products(self, tangents: Tensor, theta_tangents: Tensor) -> Tensor:
        """There are none."""
        raise RuntimeError("a plain step carries no tangents")


@dataclass(frozen=True)
class PlainProblem(Problem):
    """A problem whose steps are plain ones."""

    @property
    def make_point(self) -> PointMaker:
        """See `PlainPoint`."""
        return PlainPoint


def plain(problem: Problem) -> PlainProblem:
    """The same problem without tangents."""
    return PlainProblem(**{part.name: getattr(problem, part.name) for part in fields(problem)})


class _Watch:
    """The `OnStep` of a plain run: validates at each rung, and ends a run whose weights are not finite."""

    def __init__(
        self, problem: Problem, network: Network, number: int, horizon: int, rungs: Sequence[int], at_rung: AtRung
    ) -> None:
        self._problem, self._network, self._number = problem, network, number
        self._every = -(-horizon // BLOCKS_PER_HORIZON)
        self._rungs, self._at_rung = list(rungs), at_rung
        self.waited = 0.0
        self.last: Score | None = None

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        if state.step % self._every == 0 and self._is_lost(state, loss):
            self.last = None
            return False
        if self._rungs and state.step == self._rungs[0]:
            self.last = validation_score(self._problem, self._network, state.weights, self._number)
            self._network.train()
            return self._ask(self.last.loss)
        return True

    @staticmethod
    def _is_lost(state: InnerState, loss: Tensor) -> bool:
        return not math.isfinite(loss.item()) and not bool(torch.isfinite(state.weights).all())

    def end(self) -> None:
        """Passes the rungs that the run did not come to: the other ranks still come to theirs."""
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
    problem = plain(problem)
    network = problem.network(number)
    watch = _Watch(problem, network, number, horizon, rungs, at_rung)
    state, _ = run_horizon(problem, network, values, number, horizon, (), watch)
    watch.end()
    found_test = None
    if state.step == horizon:
        val = validation_score(problem, network, state.weights, number)
        found_test = test_score(problem, network, state.weights) if test else None
    else:
        val = watch.last or Score(math.inf, None)
    seconds = time.perf_counter() - began - watch.waited
    return Outcome(val, found_test, state.step, seconds)


def validation_score(problem: Problem, network: Network, weights: Tensor, number: int) -> Score:
    """The validation loss that the gradient methods see too, without its gradient."""
    batches = (checked_batch(batch, "val_batches") for batch in problem.task.val_batches(number))
    return score(problem, network, weights, batches, problem.val_batch_norm) or Score(math.inf, None)


def test_score(problem: Problem, network: Network, weights: Tensor) -> Score | None:
    """On the test data, with running statistics in batch-norm; None where there is none."""
    batches = (checked_batch(batch, "test_batches") for batch in problem.task.test_batches())
    return score(problem, network, weights, batches, "running")


@torch.no_grad()
def score(
    problem: Problem, network: Network, weights: Tensor, batches: Iterable[Batch], batch_norm: str
) -> Score | None:
    """Loss and accuracy at `weights` [D], batches weighed by their samples; None where there is no batch.

    Leaves the network in evaluation mode.
    """
    network.evaluate(batch_norm)
    loss_of = validation_loss(problem.task)
    total, samples, right, answers = 0.0, 0, 0, 0
    for batch in batches:
        inputs, targets = network.cast(batch)
        output, _ = network(weights, inputs)
        total += loss_of(output, targets).item() * len(targets)
        samples += len(targets)
        hits = right_answers(output, targets)
        if hits is not None:
            right += int(hits.item())
            answers += targets.numel()
    if not samples:
        return None
    loss = total / samples
    return Score(loss if math.isfinite(loss) else math.inf, right / answers if answers else None)
