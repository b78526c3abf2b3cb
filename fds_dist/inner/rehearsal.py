"""A few steps of reverse mode there and back, from which the time that a whole sweep takes can be told."""

from __future__ import annotations

import time
from statistics import median

import torch

from fds_dist.inner.estimators.reverse import ReverseSweep
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun

STEPS = 6
REPEATS = 3
WARM_UP = 1
PLAIN_STEPS = 4 * STEPS * (REPEATS + WARM_UP)
"""What `cost_of_way_back` takes, in plain steps."""


def cost_of_way_back(problem: Problem) -> float:
    """How many times as long a step on the way back takes as one on the way there, timed on this device in eager
    steps.

    By its products it is three times as long; the less, the more a step has beside them. Of the run itself nothing
    changes. All data of a batch is on this rank.
    """
    sweep = ReverseSweep(InnerRun(problem, problem.trial_values(), 0, STEPS))
    ratios = [_back_over_there(sweep) for _ in range(WARM_UP + REPEATS)]
    return median(ratios[WARM_UP:])


def _back_over_there(sweep: ReverseSweep) -> float:
    began = _now(sweep.problem.device)
    taken = list(sweep.replay(sweep.start, STEPS))
    turned = _now(sweep.problem.device)
    adjoints = [torch.ones_like(part) for part in sweep.differentiable_parts(taken[-1][3])]
    for state, batch, _, _ in reversed(taken):
        adjoints, _ = sweep.pull_back(state, sweep.hyperparameters(state.step), batch, adjoints)
    return (_now(sweep.problem.device) - turned) / (turned - began)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
