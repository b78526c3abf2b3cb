"""What a run is predicted to cost: the plan's numbers. Measured seconds are not judged here, only what follows."""

from __future__ import annotations

import pytest
from problems import image_task, make_problem, mlp

from fds_dist.cost import CostReport, cost_report
from fds_dist.distributed.mesh import MeshShape
from fds_dist.engine.outer_loop import OuterSettings
from fds_dist.inner import SGD, Adam, InnerOptimizer

WEIGHTS = 36 * 5 + 5 + 5 * 4 + 4
FLOAT64 = 8  # bytes
BUCKETS = {"lr": [0.1] * 4, "momentum": [0.5], "weight_decay": [0.01]}


def report(ranks: int, epochs: tuple[float, ...] = (4.0,), optimizer: InnerOptimizer | None = None) -> CostReport:
    buckets = BUCKETS if optimizer is None else {"lr": [0.1], "beta1": [0.9]}
    problem = make_problem(image_task(mlp), buckets, optimizer=optimizer or SGD())  # 5 steps per epoch
    return cost_report(problem, OuterSettings(epochs), MeshShape(1, ranks, 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_plan_owns_each_tangent_once_and_costs_what_its_windows_say(ranks: int) -> None:
    found = report(ranks)
    starts = (0, 5, 10, 15, 0, 0)  # of 20 steps
    assert found.weights == WEIGHTS
    assert sorted(element for rank in found.ranks for element in rank.elements) == list(range(6))
    assert len(found.ranks) == ranks
    for rank in found.ranks:
        tangent_steps = sum(20 - starts[element] for element in rank.elements)
        assert rank.plain_steps == 20 + 2 * tangent_steps  # an exact product costs two plain steps
        assert rank.seconds == pytest.approx(20 * found.plain_seconds + tangent_steps * found.tangent_seconds)
        # Weights and velocity, a tangent of each per element, and one gradient.
        assert rank.memory_bytes == (2 * (1 + len(rank.elements)) + 1) * WEIGHTS * FLOAT64
    assert found.one_rank_plain_steps == 20 + 2 * (20 + 15 + 10 + 5 + 20 + 20)
    assert found.reverse_plain_steps == 4 * 20
    assert found.costliest.plain_steps == max(rank.plain_steps for rank in found.ranks)


def test_balance_of_two_ranks_is_the_best_there_is() -> None:
    # Loads 20, 20, 20, 15, 10, 5 make 90: 45 each.
    assert [rank.plain_steps for rank in report(2).ranks] == [20 + 2 * 45] * 2


def test_outer_steps_of_different_length_are_planned_for_the_longest_and_timed_for_all() -> None:
    found = report(2, epochs=(1.0, 4.0, 2.0))
    assert found.horizons == (5, 20, 10)
    assert found.plan.horizon == 20
    assert found.total_seconds == pytest.approx(found.costliest.seconds * 35 / 20)


def test_memory_counts_every_tensor_of_the_optimizers_state() -> None:
    found = report(1, optimizer=Adam())
    state = 3 * WEIGHTS + 1  # weights, two moments and the count of steps
    assert found.ranks[0].memory_bytes == (state * (1 + 2) + WEIGHTS) * FLOAT64


def test_measured_seconds_are_times() -> None:
    found = report(1)
    assert found.plain_seconds > 0
    assert found.tangent_seconds >= 0
