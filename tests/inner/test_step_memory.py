"""What a step holds at its peak beside the state and the tangents, in bytes of the tensors that operations make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import CPU, flat, image_task, make_problem
from torch import Tensor, nn

from fds_dist.common.memory import _LiveBytes, peak_bytes
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents.compiled.graph import trace

BUCKETS = {"lr": [0.1], "momentum": [0.5], "weight_decay": [0.01]}
HIDDEN = 300


def wide() -> nn.Module:
    """Where vectors over the weights take most of the memory."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 4))


def problem_of(method: str, chunk_size: int, accumulate: int = 1) -> Problem:
    return make_problem(image_task(wide), BUCKETS, method=method, chunk_size=chunk_size, accumulate=accumulate)


def run_of(problem: Problem) -> InnerRun:
    return InnerRun(problem, flat(BUCKETS), 0, 3)


def beside_tangents(problem: Problem, tangents: int) -> float:
    """The peak of some steps with so many tangents, which are not counted, in vectors over the weights."""
    elements = list(range(tangents))
    peak = peak_bytes(lambda: run_horizon(run_of(problem), elements), CPU)
    width = problem.network(0).layout.size
    return peak / (8 * width) - 2 * tangents  # float64: of the weights and of the velocity


@pytest.mark.parametrize("method", ["double_backward", "jvp"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_tangent_takes_for_a_while_is_gone_before_the_next(method: str, accumulate: int) -> None:
    problem = problem_of(method, 1, accumulate)
    one, two, three = (beside_tangents(problem, tangents) for tangents in (1, 2, 3))
    # Forward mode copies dw and ds of a tangent where they are rows of larger tensors, and micro-batches sum up the
    # products of each tangent. Numbers such as h are a few bytes.
    summed = int(accumulate > 1)
    assert two == pytest.approx(one + 2 + summed, abs=1e-2)
    assert three == pytest.approx(two + summed, abs=1e-2)


def peaks_by_step(problem: Problem, tangents: int) -> list[float]:
    """As `beside_tangents`, of each step alone."""
    width, seen = problem.network(0).layout.size, list[float]()
    with _LiveBytes() as live:

        def on_step(state: InnerState, loss: Tensor) -> bool:
            seen.append(live.peak / (8 * width) - 2 * tangents)
            live.peak = live.now
            return True

        run_horizon(replace(run_of(problem), on_step=on_step), list(range(tangents)))
    return seen


def test_a_traced_step_holds_the_outputs_of_one_chunk() -> None:
    problem = problem_of("jvp", 1)
    problem = replace(problem, tangents=replace(problem.tangents, compile="trace", compiled_chunk=1))
    two, three = (peaks_by_step(replace(problem), tangents) for tangents in (2, 3))  # each is compared anew
    assert three == pytest.approx(two, abs=1e-2)
    # The first steps are compared with eager ones, whose inputs and results are there beside their own: 24 and 11.
    assert max(three) < 2.5 * three[-1]


def test_tensors_of_a_trace_take_no_memory() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.cat([x, x]).sum()]

    graphs = []
    size = 1_000_000
    peak = peak_bytes(lambda: graphs.append(trace(function, torch.zeros(size), nn.Identity())), CPU)
    assert peak < 12 * size  # the example and a copy of it, four bytes each; with the results of the trace 20
