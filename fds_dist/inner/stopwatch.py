"""Time, memory and kernels of the steps of an inner run, taken as the run itself takes them.

Shapes: k = live tangents, H = numbers in use at a step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import ALONE, InnerRun, InnerState, OnStep, Tangents
from fds_dist.inner.training import Training

REPEATS = 5
"""The fewest steps, or blocks of steps, that a median is taken of."""
MOST = 50
LONG_ENOUGH = 0.5
"""Seconds after which no more than `REPEATS` are taken; `MOST` before that."""
WARM_UP = 2
SHORT_STEP = 0.02
BLOCK = 10
"""Steps shorter than `SHORT_STEP` seconds are timed in blocks of so many on a GPU: waiting for it after each of them
would count the time in which it has nothing to do."""


@dataclass
class Stopwatch:
    """Times steps from its making on; called after each, it says whether more are needed. An `OnStep`."""

    device: torch.device
    repeats: int = REPEATS
    long_enough: float = LONG_ENOUGH
    warm_up: int = WARM_UP
    """Steps that do not count."""
    first_seconds: float = 0.0
    """Of the first step: what is done once, such as compilation, is in it."""
    seconds: list[float] = field(default_factory=list)
    """Per step, after those that warm up."""
    _last: float = field(default_factory=time.perf_counter)
    _steps: int = 0
    _block: int = 1
    _in_block: int = 0

    def __call__(self, *_: object) -> bool:
        """See `OnStep`."""
        self._in_block += 1
        if self._in_block < self._block:
            return True
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        per_step, self._last = (now - self._last) / self._in_block, now
        self._steps, self._in_block = self._steps + self._in_block, 0
        if self._steps == 1:
            self.first_seconds = per_step
        if self._steps > self.warm_up:
            self.seconds.append(per_step)
        elif self._steps > 1 and self.device.type == "cuda" and per_step < SHORT_STEP:
            self._block = BLOCK
        enough = self.repeats if sum(self.seconds) * self._block >= self.long_enough else max(MOST, self.repeats)
        return len(self.seconds) < enough


def time_steps(
    problem: Problem, tangents: int, repeats: int = REPEATS, long_enough: float = LONG_ENOUGH, warm_up: int = WARM_UP
) -> Stopwatch:
    """Times steps with `tangents` live tangents, from the state before the first step on.

    Args:
        repeats: the fewest steps that are timed.
        long_enough: seconds after which no more than `repeats` are.
        warm_up: steps before them that do not count.
    """
    watch = Stopwatch(problem.device, repeats, long_enough, warm_up)
    most = warm_up + BLOCK * max(MOST, repeats)
    run_steps(problem, tangents, most, watch)
    return watch


def run_steps(
    problem: Problem, tangents: int, steps: int, on_step: OnStep | None = None, ranks: Ranks = ALONE
) -> tuple[Training, Tangents]:
    """Takes `steps` inner steps with as many live tangents, each along one of the learned hyperparameters in turn.

    There may be more of them than learned numbers. At the start values no tangent is zero: some methods would skip it.
    """
    space = problem.space
    owners = [space.learned[row % len(space.learned)] for row in range(tangents)]
    element_of = {slot.owner.name: place for place, slot in reversed(list(enumerate(space.elements)))}
    columns = torch.arange(sum(space.sizes.values()))
    moved = torch.tensor([space.columns[owner.name].start for owner in owners]).reshape(-1, 1) == columns  # [k, H]
    horizon = max(steps, *(owner.buckets for owner in space.learned))
    left = iter(range(steps - 1))

    def go_on(state: InnerState, loss: Tensor) -> bool:
        more = on_step is None or on_step(state, loss)
        return more and next(left, None) is not None

    run = InnerRun(problem, problem.trial_values(), 0, horizon, ranks, go_on)
    return run_horizon(run, [element_of[owner.name] for owner in owners], lambda places: moved[:, None] & (places >= 0))
