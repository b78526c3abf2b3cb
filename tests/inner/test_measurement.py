"""What a step is predicted to take: the fit to its times, and its memory against what inner runs then take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from math import ceil
from typing import cast

import pytest
import torch
from problems import CPU, TensorTask, conv_bn, image_task, images, make_problem, mlp
from rich.console import Console
from torch import nn

from fds_dist.commands.check.command import print_check
from fds_dist.commands.check.cost import CostReport, cost_report
from fds_dist.common.memory import peak_bytes
from fds_dist.config import load_config
from fds_dist.distributed.mesh import MeshShape
from fds_dist.inner import measurement, shape_peak
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.measurement import measure_step
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.models.lenet import lenet
from fds_dist.outer.progress import OuterSettings
from fds_dist.tangents.optimizers import SGD, Adam, InnerOptimizer

BUCKETS = {"lr": [0.1] * 4, "momentum": [0.5], "weight_decay": [0.01]}


def with_times(monkeypatch: pytest.MonkeyPatch, fixed: float, chunk: float, row: float, size: int) -> Problem:
    """A problem whose steps are said to take a + b·⌈k/size⌉ + c·k seconds, and plain ones 1."""

    def seconds(problem: Problem, tangents: int, repeats: int) -> float:
        if problem.tangents.method == "plain":
            return 1.0
        return fixed + chunk * ceil(tangents / size) + row * tangents if tangents else 2.0

    monkeypatch.setattr(measurement, "_median", seconds)
    return make_problem(image_task(mlp), BUCKETS, chunk_size=size)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize(("fixed", "chunk", "row"), [(3.0, 2.0, 0.5), (0.0, 2.0, 0.0), (1.0, 0.0, 2.0)])
def test_times_that_follow_the_formula_are_predicted(
    monkeypatch: pytest.MonkeyPatch, fixed: float, chunk: float, row: float, size: int
) -> None:
    problem = with_times(monkeypatch, fixed, chunk, row, size)
    measured = measure_step(problem, most=9)
    assert (measured.plain_seconds, measured.seconds(0)) == (1.0, 2.0)
    for tangents in range(1, 10):
        assert measured.seconds(tangents) == pytest.approx(fixed + chunk * ceil(tangents / size) + row * tangents)


def test_a_slower_step_with_fewer_tangents_is_noise() -> None:
    noise = {0: 1.0, 1: 3.0, 2: 2.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "_median", lambda problem, tangents, repeats: noise[tangents])
        measured = measure_step(make_problem(image_task(mlp), BUCKETS), most=6)
    assert measured.tangent_seconds == 0
    assert measured.seconds(6) == 3.0


def report_with(fixed: float, chunk: float, row: float, size: int, ranks: int = 1) -> CostReport:
    with pytest.MonkeyPatch.context() as patch:
        problem = with_times(patch, fixed, chunk, row, size)
        return cost_report(problem, OuterSettings((20,)), MeshShape(1, ranks, 1))


def test_where_launches_bound_a_step_more_ranks_bring_nothing() -> None:
    bound, free = report_with(0.0, 2.0, 0.0, 16), report_with(1.0, 0.0, 2.0, 1)
    assert bound.measured_speed_up(6) == 1.0
    starts = (0, 5, 10, 15, 0, 0)  # of 20 steps, 1 + 2k seconds each
    assert free.measured_speed_up(6) == pytest.approx((20 + 2 * sum(20 - start for start in starts)) / (3 * 20))
    problem = make_problem(image_task(mlp), BUCKETS)
    config = load_config({"task": {"name": "digits"}, "hyperparameters": {"lr": {"init": 0.1, "step": 0.1}}})
    for report, sentence in ((bound, "bring next to nothing"), (free, "save time")):
        printed = Console(file=StringIO(), width=1000)
        print_check(config, problem, report, console=printed)
        assert sentence in cast(StringIO, printed.file).getvalue()


def wide(hidden: int = 300) -> nn.Module:
    """Where tangents take most of the memory."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, hidden), nn.Tanh(), nn.Linear(hidden, 4))


def predicted_and_taken(problem: Problem, steps: int) -> tuple[int, int]:
    """Peak memory of an inner run in bytes, as `check` predicts it and as it is."""
    run = InnerRun(problem, problem.space.initial(), 0, steps)
    return predicted_by_check(problem, steps), peak_bytes(lambda: estimate_forward(run), CPU)


def predicted_by_check(problem: Problem, steps: int) -> int:
    return cost_report(problem, OuterSettings((steps,)), MeshShape(1, 1, 1)).ranks[0].memory.total


CASES = [
    # network, method, tangents per chunk, optimizer, micro-batches
    (conv_bn, "double_backward", 1, SGD(), 1),
    (conv_bn, "jvp", 4, Adam(), 1),
    (conv_bn, "jvp", 1, SGD(), 2),
    (wide, "double_backward", 1, Adam(), 1),
    (wide, "double_backward", 1, SGD(), 2),
    (wide, "jvp", 1, SGD(), 1),
    (wide, "jvp", 4, SGD(), 1),
    (wide, "jvp", 2, Adam(), 2),
]


@pytest.mark.parametrize(("build", "method", "chunk_size", "optimizer", "accumulate"), CASES)
def test_peak_memory_is_predicted_within_a_tenth(
    build: Callable[[], nn.Module], method: str, chunk_size: int, optimizer: InnerOptimizer, accumulate: int
) -> None:
    task = TensorTask(build, images(256), images(64), batch_size=64)
    buckets = {"lr": [0.01] * 4, **({"momentum": [0.5]} if optimizer.name == "sgd" else {"beta1": [0.9]})}
    problem = make_problem(task, buckets, method=method, chunk_size=chunk_size, optimizer=optimizer)
    predicted, taken = predicted_and_taken(replace(problem, accumulate=accumulate), 4)
    assert predicted == pytest.approx(taken, rel=0.1)


LONG_STEPS = 6


def long_step(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """As `predicted_and_taken`, of a step that would take so long that eight samples are measured."""
    monkeypatch.setattr(measurement, "_median", lambda *_, **__: 1.0)
    monkeypatch.setattr(measurement, "_affordable", lambda *_: 8)
    return predicted_and_taken(problem, LONG_STEPS)


def digits_network() -> nn.Module:
    """LeNet for 28 × 28: its weights are the peak for 8 samples, its activations for 128."""
    return lenet((1, 28, 28), 10)


@pytest.mark.parametrize(
    ("build", "method", "chunk_size", "optimizer", "accumulate"),
    [
        pytest.param(digits_network, "double_backward", 1, SGD(), 1, marks=pytest.mark.slow),  # each half is below
        (digits_network, "jvp", 4, SGD(), 1),
        (conv_bn, "double_backward", 1, Adam(), 2),
    ],
)
def test_the_peak_of_a_long_step_is_told_by_shapes(
    build: Callable[[], nn.Module],
    method: str,
    chunk_size: int,
    optimizer: InnerOptimizer,
    accumulate: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, labels = images(256)
    x = torch.nn.functional.pad(x, (11, 11, 11, 11)) if build is digits_network else x
    task = TensorTask(build, (x, labels), (x[:64], labels[:64]), batch_size=128)
    buckets = {"lr": [0.01] * 6, **({"momentum": [0.5]} if optimizer.name == "sgd" else {"beta1": [0.9]})}
    problem = make_problem(
        task, buckets, method=method, chunk_size=chunk_size, optimizer=optimizer, accumulate=accumulate
    )
    predicted, taken = long_step(problem, monkeypatch)
    assert predicted == pytest.approx(taken, rel=0.1)
    if build is digits_network:  # or nothing would be shown
        monkeypatch.setattr(measurement, "_peaks_by_shapes", lambda *_: "")
        assert predicted_by_check(problem, LONG_STEPS) < 0.9 * taken


class ReadsValues(nn.Module):
    """A network with a branch on a value, which shapes do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.network = wide()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) * (2.0 if x.sum().item() > 0 else 1.0)


class FormatsValues(ReadsValues):
    """The same, which raises an error of Python's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) * float(f"{x.detach().abs().sum():.1f}") ** 0


@pytest.mark.parametrize(
    ("build", "reason"),
    [(ReadsValues, "DataDependentOutputException: aten._local_scalar_dense.default"), (FormatsValues, "TypeError: ")],
)
def test_where_values_are_read_the_peak_is_extrapolated(
    build: Callable[[], nn.Module], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(TensorTask(build, images(64), images(16), batch_size=32), BUCKETS)
    told = measurement._peaks_by_shapes(problem, 1, 2)
    assert isinstance(told, str) and told.startswith(reason) and "test_measurement.py:" in told
    predicted, taken = long_step(problem, monkeypatch)  # weights are the peak for any number of samples here
    assert predicted == pytest.approx(taken, rel=0.1)


def test_a_fault_of_the_package_is_no_reason_to_extrapolate(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(TensorTask(wide, images(64), images(16), batch_size=32), BUCKETS)
    monkeypatch.setattr(shape_peak, "zero_tangents", lambda local, elements, live: None)  # which nobody expects
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'buffers'"):
        measurement._peaks_by_shapes(problem, 1, 2)
