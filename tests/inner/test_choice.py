"""The choice between forward and reverse mode: by plain steps, by memory, forward mode in doubt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import image_task, make_problem, mlp

from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner.choice import Way, choose, forward_way, may_pay, reverse_way
from fds_dist.inner.plan import Chunks, make_plan
from fds_dist.inner.problem import Problem

PLENTY = 10**12


def problem(buckets: int, kept_bytes: int = PLENTY) -> Problem:
    made = make_problem(image_task(mlp), {"lr": [0.1] * buckets, "momentum": [0.5]})
    return replace(made, tangents=replace(made.tangents, kept_bytes=kept_bytes))


@pytest.mark.parametrize(
    ("forward", "reverse", "free", "obstacle", "expected"),
    [
        (Way(300, 10), Way(400, 10), 20, "", ("forward", "3.0 plain steps on the slowest rank, 4.0 by reverse mode")),
        (Way(500, 10), Way(400, 10), 20, "", ("reverse", "4.0 plain steps on the slowest rank, 5.0 by forward mode")),
        (Way(400, 10), Way(400, 10), 20, "", ("forward", "4.0 plain steps")),  # in doubt
        (Way(900, 10), Way(400, 30), 20, "", ("forward", "the other's kept states (30 B) exceed free memory, 20 B")),
        (Way(300, 30), Way(400, 10), 20, "", ("reverse", "the other's tangents (30 B) exceed free memory, 20 B")),
        (Way(500, 30), Way(400, 30), 20, "", ("reverse", "4.0 plain steps")),  # neither fits: the faster one
        (Way(900, 30), Way(400, 10), 20, "it is Monday", ("forward", "it is Monday")),
    ],
)
def test_the_better_one_is_taken(forward: Way, reverse: Way, free: int, obstacle: str, expected: Any) -> None:
    choice = choose(forward, reverse, 100, free, obstacle)
    assert choice.estimator == expected[0]
    assert expected[1] in choice.reason


@pytest.mark.parametrize("shape", [MeshShape(1, 1, 1), MeshShape(2, 2, 1), MeshShape(1, 3, 2)])
def test_forward_mode_takes_what_the_plan_says_of_the_slowest_rank(shape: MeshShape) -> None:
    horizons = (20, 20, 40)
    way = forward_way(problem(4), horizons, shape)
    plans = [make_plan(problem(4).space.starts(horizon), horizon, shape.tangent) for horizon in horizons]
    costs = [max(plan.cost(rank) for rank in range(shape.tangent)) for plan in plans]
    assert way.steps == sum(costs) / shape.data
    most = max(len(owned) for owned in plans[0].owned)
    assert way.held == most * -(-problem(4).state_bytes // shape.data)


@pytest.mark.parametrize("tangent", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_steps_are_counted_by_their_calls(device: str, tangent: int) -> None:
    eager = problem(4)
    compiled = replace(eager, tangents=replace(eager.tangents, compile="trace", compiled_chunk=3))
    plan, shape = make_plan(eager.space.starts(20), 20, tangent), MeshShape(1, tangent, 1)
    chunks = Chunks(3, filled=device == "cuda")
    expected = max(plan.cost(rank, chunks) for rank in range(tangent))
    on_device = replace(compiled, device=torch.device(device))
    on_device.__dict__["state_bytes"] = eager.state_bytes  # which would be counted on the device
    assert forward_way(on_device, (20,), shape).steps == expected > forward_way(eager, (20,), shape).steps


def test_compiled_steps_may_make_reverse_mode_the_faster_one() -> None:
    eager = problem(5)
    compiled = replace(eager, tangents=replace(eager.tangents, compile="trace", compiled_chunk=1))
    two = MeshShape(1, 4, 1)
    for each, expected in ((eager, "forward"), (compiled, "reverse")):
        assert choose(forward_way(each, (20,), two), reverse_way(each, (20,), two), 20, PLENTY).estimator == expected


def test_reverse_mode_costs_the_same_on_every_tangent_rank_and_holds_what_it_keeps() -> None:
    horizons, state = (20, 36), problem(4).state_bytes
    for shape in (MeshShape(1, 1, 1), MeshShape(1, 4, 1)):
        assert reverse_way(problem(4), horizons, shape) == Way(4 * 56, 36 * state)
        assert reverse_way(problem(4, 0), horizons, shape) == Way(5 * 56, 12 * state)
        # The state of 20 steps fits, that of 36 does not.
        assert reverse_way(problem(4, 30 * state), horizons, shape) == Way(4 * 20 + 5 * 36, 12 * state)
    assert reverse_way(problem(4), horizons, MeshShape(1, 1, 2)) == Way(4 * 56 / 2, 36 * state)


def test_reverse_mode_is_tried_only_where_it_may_pay() -> None:
    alone, many = MeshShape(1, 1, 1), MeshShape(1, 9, 1)
    assert may_pay(problem(8), (20,), alone, PLENTY)
    assert not may_pay(problem(8), (20,), many, PLENTY)  # a tangent per rank: 3 plain steps
    assert may_pay(problem(8), (20,), many, free=problem(8).state_bytes - 1)
