"""All states of a reverse sweep or some: the same derivatives, in the passes and the memory that are charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from problems import CPU, Buckets, conv_bn, flat, image_task, make_problem
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fds_dist.common.memory import peak_bytes
from fds_dist.inner.estimators import Estimate, estimate_reverse
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.plan import kept_states, reverse_cost
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.optimizers import Adam

BUCKETS: Buckets = {"lr": [0.1, 0.2, 0.1], "momentum": [0.5, 0.8], "weight_decay": [0.01]}
ADAM_BUCKETS: Buckets = {"lr": [0.02, 0.01], "beta1": [0.8], "eps": [1e-3]}
HORIZON = 17
"""Stretches of 5 steps, the last of 2."""


def keeping(problem: Problem, kept_bytes: int) -> Problem:
    return replace(problem, tangents=replace(problem.tangents, kept_bytes=kept_bytes))


def reverse(problem: Problem, buckets: Buckets = BUCKETS) -> Estimate:
    return estimate_reverse(InnerRun(problem, flat(buckets), 0, HORIZON))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))


def deep_mlp() -> nn.Module:
    layers = [layer for _ in range(6) for layer in (nn.Linear(40, 40), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 40), nn.Tanh(), *layers, nn.Linear(40, 4))


def running() -> Problem:
    problem = make_problem(image_task(conv_bn), BUCKETS, val_batch_norm="running")
    return replace(problem, live_buffers=("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"))


@pytest.mark.parametrize(
    ("make", "buckets"),
    [
        (lambda: make_problem(image_task(conv_bn), BUCKETS), BUCKETS),
        (running, BUCKETS),
        (lambda: make_problem(image_task(dropout), BUCKETS, accumulate=2), BUCKETS),
        (lambda: make_problem(image_task(conv_bn), ADAM_BUCKETS, optimizer=Adam(), ema=0.7), ADAM_BUCKETS),
    ],
    ids=["batch norm", "live buffers", "dropout", "averaged adam"],
)
def test_all_states_or_some_give_the_same_bits(make: Callable[[], Problem], buckets: Buckets) -> None:
    problem = make()
    every = HORIZON * problem.state_bytes
    assert keeping(problem, every).keeps_every_state(HORIZON)
    assert not keeping(problem, every - 1).keeps_every_state(HORIZON)
    assert reverse(keeping(problem, every), buckets) == reverse(keeping(problem, every - 1), buckets)


@pytest.mark.parametrize(("kept_bytes", "passes"), [(2**30, 4), (0, 5)])
def test_the_passes_are_those_that_are_charged(kept_bytes: int, passes: int) -> None:
    problem = keeping(make_problem(image_task(deep_mlp), BUCKETS), kept_bytes)
    horizon = 40
    values = flat(BUCKETS)

    def operations(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    plain = operations(lambda: run_horizon(InnerRun(problem, values, 0, horizon)))
    sweep = operations(lambda: estimate_reverse(InnerRun(problem, values, 0, horizon)))
    assert reverse_cost(problem, horizon) == passes * horizon
    # The validation adds a twentieth of a pass, and a product by the inputs, which nothing is differentiated by, is
    # left out where it is not needed: 1 of 16 layers' products.
    assert sweep / plain == pytest.approx(passes, rel=0.03)


@pytest.mark.parametrize("kept_bytes", [2**30, 0])
def test_as_many_states_are_kept_as_is_said(kept_bytes: int) -> None:
    wide = image_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 400), nn.Tanh(), nn.Linear(400, 4)))
    problem = keeping(make_problem(wide, {"lr": [0.01]}), kept_bytes)

    def peak(horizon: int) -> int:
        return peak_bytes(lambda: estimate_reverse(InnerRun(problem, [0.01], 0, horizon)), CPU)

    short, long = 9, 81
    states = kept_states(problem, long) - kept_states(problem, short)
    # A tenth: the ends of the stretches, where a state or two more are there, and the batches of a stretch.
    assert peak(long) - peak(short) == pytest.approx(states * problem.state_bytes, rel=0.1)


def test_the_bytes_of_a_state_are_those_of_weights_and_optimizer() -> None:
    sgd, adam = (make_problem(image_task(conv_bn), {"lr": [0.1]}, optimizer=each) for each in (None, Adam()))
    weights = sum(parameter.numel() for parameter in conv_bn().parameters()) * torch.finfo(torch.float64).bits // 8
    assert sgd.state_bytes == 2 * weights
    assert adam.state_bytes == 3 * weights + 8  # two moments, and the count of steps
