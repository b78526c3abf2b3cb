"""What a run is predicted to cost: the plan's numbers. Measured seconds are not judged here, only what follows."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from problems import CPU, TensorTask, image_task, images, make_problem, mlp
from rich.console import Console
from torch import nn

from fds_dist.commands.check.cost import CostReport, cost_report
from fds_dist.commands.check.plan_text import print_plan
from fds_dist.common.memory import peak_bytes
from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner import measurement as step_measurement
from fds_dist.inner.choice import forward_way
from fds_dist.inner.estimators import estimate_reverse
from fds_dist.inner.measurement import measure_step
from fds_dist.inner.run import InnerRun
from fds_dist.outer.progress import OuterSettings
from fds_dist.tangents.optimizers import SGD, Adam, InnerOptimizer

WEIGHTS = 36 * 5 + 5 + 5 * 4 + 4
FLOAT64 = 8  # bytes
BUCKETS = {"lr": [0.1] * 4, "momentum": [0.5], "weight_decay": [0.01]}


def report(ranks: int, horizons: tuple[int, ...] = (20,), optimizer: InnerOptimizer | None = None) -> CostReport:
    buckets = BUCKETS if optimizer is None else {"lr": [0.1], "beta1": [0.9]}
    problem = make_problem(image_task(mlp), buckets, optimizer=optimizer or SGD())  # 5 steps per epoch
    return cost_report(problem, OuterSettings(horizons), MeshShape(1, ranks, 1))


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
        live = [sum(starts[element] <= step for element in rank.elements) for step in range(20)]
        assert sum(live) == tangent_steps
        assert rank.seconds == pytest.approx(sum(map(found.measured.seconds, live)))
        memory = rank.memory
        assert memory.weights == memory.state == WEIGHTS * FLOAT64
        assert memory.tangents == 2 * len(rank.elements) * WEIGHTS * FLOAT64  # of weights and velocity
        assert memory.total == memory.weights + memory.state + memory.tangents + memory.step
        assert rank.step_traffic == 0
    assert found.one_rank_plain_steps == 20 + 2 * (20 + 15 + 10 + 5 + 20 + 20)
    assert found.reverse.plain_steps == 4 * 20
    assert found.costliest.plain_steps == max(rank.plain_steps for rank in found.ranks)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [("forward", "compared with eager ones, 4 tangents at once"), ("reverse", "Times and memory")],
)
def test_it_is_said_whose_memory_a_compiled_plan_has(estimator: str, said: str) -> None:
    eager = make_problem(image_task(mlp), BUCKETS)
    compiled = replace(eager, tangents=replace(eager.tangents, compile="trace", compiled_chunk=4))
    reports = [
        cost_report(problem, OuterSettings((20,)), MeshShape(1, 1, 1), estimator) for problem in (eager, compiled)
    ]
    text = StringIO()
    print_plan(compiled, reports[1], (), Console(file=text, width=1000))
    assert said in text.getvalue()
    taken = [report.reverse if estimator == "reverse" else report.costliest for report in reports]
    assert (taken[0].memory == taken[1].memory) == (estimator == "reverse")


def test_a_compiled_plan_costs_what_the_choice_of_an_estimator_counts() -> None:
    problem = make_problem(image_task(mlp), BUCKETS)
    compiled = replace(problem, tangents=replace(problem.tangents, compile="trace", compiled_chunk=4))
    shape = MeshShape(1, 2, 1)
    found = cost_report(compiled, OuterSettings((20,)), shape)
    assert found.costliest.plain_steps == forward_way(compiled, (20,), shape).steps
    # At most four tangents a rank, one call a step; six ranks with one each.
    eager = cost_report(problem, OuterSettings((20,)), shape)
    assert found.costliest.plain_steps == eager.costliest.plain_steps
    assert found.speed_up(6) == eager.speed_up(6) == eager.costliest.plain_steps / (20 * 3)
    assert found.one_rank_plain_steps == eager.one_rank_plain_steps + 10  # from step 10 on five and six: two calls


def test_balance_of_two_ranks_is_the_best_there_is() -> None:
    # Loads 20, 20, 20, 15, 10, 5 make 90: 45 each.
    assert [rank.plain_steps for rank in report(2).ranks] == [20 + 2 * 45] * 2


def test_outer_steps_of_different_length_are_planned_for_the_longest_and_timed_for_all() -> None:
    found = report(2, horizons=(5, 20, 10))
    assert found.horizons == (5, 20, 10)
    assert found.plan.horizon == 20
    assert found.total_seconds == pytest.approx(found.costliest.seconds * 35 / 20)


def test_memory_counts_every_tensor_of_the_optimizers_state() -> None:
    found = report(1, optimizer=Adam())
    memory = found.ranks[0].memory
    state = 2 * WEIGHTS + 1  # two moments and the count of steps
    assert (memory.state, memory.tangents) == (state * FLOAT64, 2 * (WEIGHTS + state) * FLOAT64)


def test_data_ranks_share_the_state_and_the_cost_and_send_what_they_share() -> None:
    problem = make_problem(image_task(mlp), {"lr": [0.1], "beta1": [0.9]}, optimizer=Adam())
    found = cost_report(problem, OuterSettings((20,)), MeshShape(2, 2, 4))
    share = -(-WEIGHTS // 4)
    assert [rank.ranks for rank in found.ranks] == [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)]
    for rank in found.ranks:
        memory = rank.memory
        assert memory.weights == WEIGHTS * FLOAT64
        assert memory.state == (2 * share + 1) * FLOAT64
        assert memory.tangents == (3 * share + 1) * FLOAT64
        assert rank.plain_steps == 20 * (1 + 2) / 4
        # Gradient and product reduced, weights and tangent gathered: three quarters of each come from elsewhere.
        assert rank.step_traffic == 4 * 3 / 4 * WEIGHTS * FLOAT64
    assert found.reverse.plain_steps == 4 * 20 / 4


def test_a_wider_tangent_axis_is_as_fast_as_its_costliest_rank() -> None:
    found = report(2)
    assert found.speed_up(2) == 1.0
    assert found.speed_up(6) == (20 + 2 * 45) / (20 + 2 * 20)


def test_measured_seconds_are_times_and_measured_memory_holds_at_least_the_gradient() -> None:
    measured = report(1).measured
    assert measured.plain_seconds > 0
    assert measured.tangent_seconds >= 0
    assert measured.peak_bytes > WEIGHTS * FLOAT64


def test_where_a_step_is_long_a_few_samples_tell_what_the_whole_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def large() -> nn.Module:  # whose activations outweigh its weights at four samples already
        upsample, convolution = nn.Upsample(scale_factor=4), nn.Conv2d(1, 3, 3, bias=False)
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        return nn.Sequential(upsample, convolution, nn.BatchNorm2d(3), nn.Tanh(), *head)

    problem = make_problem(TensorTask(large, images(96), images(8), batch_size=96), {"lr": [0.1]})
    whole = measure_step(problem, parts=2)
    monkeypatch.setattr(step_measurement, "PATIENCE", 0.0)
    extrapolated = measure_step(problem, parts=2)
    assert (whole.extrapolated, extrapolated.extrapolated) == (False, True)
    # Activations are proportional to samples; what peaks beside them may change with the size: a tenth.
    assert extrapolated.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.1)


def test_reverse_mode_keeps_the_states_that_are_predicted() -> None:
    task = TensorTask(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 400), nn.Linear(400, 4)), images(80), images(8))
    problem = make_problem(task, {"lr": [0.01], "momentum": [0.5]})  # 10 steps per epoch
    peaks = [
        peak_bytes(lambda steps=steps: estimate_reverse(InnerRun(problem, [0.01, 0.5], 0, steps)), CPU)
        for steps in (20, 200)
    ]
    costs = [
        cost_report(problem, OuterSettings((horizon,)), MeshShape(1, 1, 1), "reverse").chosen for horizon in (20, 200)
    ]
    assert [cost.plain_steps for cost in costs] == [4 * 20, 4 * 200]
    states = [cost.memory.tangents for cost in costs]
    # A tenth: the ends of the stretches, where a state or two more are there.
    assert peaks[1] - peaks[0] == pytest.approx(states[1] - states[0], rel=0.1)
